# SPDX-License-Identifier: MIT
"""Python runs this when it starts with this folder in PYTHONPATH.

A process that ends with a process group of gloo may be aborted by a thread of it, rarely (PyTorch
issue 190489). Here it always fails.
"""

import atexit
import os
import sys


@atexit.register  # first, so that it runs last
def fail_with_a_process_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        print("the process ends without destroy_process_group()", file=sys.stderr, flush=True)
        os._exit(86)
