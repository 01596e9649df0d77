# SPDX-License-Identifier: MIT
"""Events change weights in place, so that captured CUDA graphs replay with the zeros."""

import torch
from torch import nn, optim

import regrow


def network(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).to(device)


def pointers(net):
    return [parameter.data_ptr() for parameter in net.parameters()]


def masked_output(net, x):
    """By a product with the masks that the zeros of a copy are, in eager mode."""
    with torch.no_grad():
        hidden = torch.relu(nn.functional.linear(x, net[0].weight, net[0].bias))
        return nn.functional.linear(hidden, net[2].weight, net[2].bias)


def test_an_event_and_its_undoing_keep_the_memory_of_the_weights(device):
    net = network(device)
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    pruner, before = regrow.Pruner(net, keep_removed=True), pointers(net)
    pruner.hook(optimizer)
    for sparsity in (0.5, 0.8):
        pruner.prune_to(sparsity, [optimizer])
        net(torch.randn(16, 32, device=device)).square().mean().backward()
        optimizer.step()
        assert pointers(net) == before
    pruner.unprune(optimizers=[optimizer])
    assert pointers(net) == before


def test_graphed_callables_replay_with_the_zeros_of_later_events(cuda):
    net = network(cuda)
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    pruner, before = regrow.Pruner(net, keep_removed=True), pointers(net)
    pruner.hook(optimizer)
    x = torch.randn(16, 32, device=cuda)
    graphed = torch.cuda.make_graphed_callables(net, (x,))
    for sparsity in (0.5, 0.9):
        pruner.prune_to(sparsity, [optimizer])
        for _ in range(3):
            optimizer.zero_grad()
            graphed(x).square().mean().backward()
            optimizer.step()
        assert regrow.sparsity(net) >= pruner.sparsity == sparsity
        assert pointers(net) == before
        torch.testing.assert_close(graphed(x).detach(), masked_output(net, x))


def test_a_captured_forward_pass_replays_with_the_zeros_of_later_events(cuda):
    net, graph = network(cuda).eval(), torch.cuda.CUDAGraph()
    x, stream = torch.randn(16, 32, device=cuda), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        net(x)  # warms up
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad(), torch.cuda.graph(graph):
        y = net(x)
    pruner = regrow.Pruner(net, keep_removed=True)
    for sparsity in (0.5, 0.9):
        pruner.prune_to(sparsity)
        graph.replay()
        torch.testing.assert_close(y, masked_output(net, x))
    pruner.unprune()
    graph.replay()
    torch.testing.assert_close(y, masked_output(net, x))


def test_a_captured_training_step_masks_in_each_replay(cuda):
    """Forward, backward and the optimizer's step in one graph, masking included."""
    net, graph = network(cuda), torch.cuda.CUDAGraph()
    optimizer = optim.Adam(net.parameters(), lr=0.01, capturable=True)
    pruner = regrow.Pruner(net, keep_removed=True)
    pruner.prune_to(0.5)
    x, stream = torch.randn(16, 32, device=cuda), torch.cuda.Stream()

    def step():
        net(x).square().mean().backward()
        optimizer.step()

    with regrow.enforce(net, pruner.masks, optimizer):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                step()
        torch.cuda.current_stream().wait_stream(stream)
        optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            step()
        before = net[0].weight.detach().clone()
        for _ in range(3):
            graph.replay()
    assert not torch.equal(net[0].weight, before), "it trains"
    for name, mask in pruner.masks.items():
        parameter = net.get_parameter(name)
        tensors = parameter.detach(), *optimizer.state[parameter].values()
        assert not any(t[~mask].any() for t in tensors if t.shape == mask.shape), name
