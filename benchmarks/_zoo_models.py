# SPDX-License-Identifier: MIT
"""The architectures of `zoo.py`: the smallest variant of each family.

By source, size of image in pixels (None: the size that the model is made for) and the argument that
the builder needs to know the size by, where positions or windows depend on it.
"""

from __future__ import annotations

from _zoo_deployed import DEPLOYED

_SMALL = 64  # saves time; channels are the same

_MODELS: dict[tuple[str, int | None, str], str] = {
    ("timm", _SMALL, "img_size"): """
        botnet26t_256 sebotnet33ts_256 lambda_resnet26rpt_256 efficientformerv2_s0 efficientvit_m0
        levit_128s vit_tiny_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224
        coat_lite_tiny coat_tiny convit_tiny pit_ti_224 twins_pcpvt_small twins_svt_small
        swin_tiny_patch4_window7_224 gcvit_xxtiny nest_tiny maxvit_pico_rw_256 coatnet_pico_rw_224
        mvitv2_tiny mixer_s32_224 resmlp_12_224 gmlp_ti16_224 visformer_tiny swiftformer_xs
        volo_d1_224 tnt_s_patch16_224 sequencer2d_s
    """,
    ("torchvision", _SMALL, "image_size"): "vit_b_16",
    ("timm", None, ""): "halonet26t efficientformer_l1 bat_resnext26ts",
    ("torchvision", 299, ""): "inception_v3",
    ("torchvision", 224, ""): "maxvit_t",
    ("torchvision", _SMALL, ""): """
        alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d squeezenet1_0 densenet121 googlenet
        shufflenet_v2_x0_5 mobilenet_v2 mobilenet_v3_small mnasnet0_5 efficientnet_b0
        efficientnet_v2_s regnet_y_400mf convnext_tiny swin_t swin_v2_t
    """,
    ("timm", _SMALL, ""): """
        tiny_vit_5m_224 crossvit_tiny_240 resnet26d legacy_seresnet18 ecaresnet26t skresnet18
        resnest14d res2net50_26w_4s resnetv2_18 resnetv2_50 gcresnext26ts cspresnet50 cs3darknet_s
        darknet17 dla34 dpn48b selecsls42 hrnet_w18_small hardcorenas_a ghostnet_100 ghostnetv3_100
        mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small lcnet_035 tf_efficientnet_b0
        efficientnetv2_rw_t rexnet_100 regnety_002 regnetz_005 repvgg_a0 repvit_m0_9 rdnet_tiny
        vovnet39a ese_vovnet19b_slim_dw xception41 inception_next_atto nf_resnet26 nf_regnet_b0
        nfnet_f0 eca_nfnet_l0 lambda_resnet26t gernet_s mobileone_s0 fasternet_t0
        fastvit_t8 starnet_s050 shvit_s1 edgenext_xx_small convnext_atto convnextv2_atto
        convmixer_768_32 convformer_s18 poolformer_s12 caformer_s18 mobilevit_xxs mobilevitv2_050
        efficientvit_b0 mambaout_femto hgnet_tiny pvt_v2_b0 davit_tiny focalnet_tiny_srf
        nextvit_small tresnet_m efficientvim_m1
    """,
}

MODELS: tuple[tuple[str, str, int | None, str], ...] = tuple(
    (source, name, size, argument)
    for (source, size, argument), names in _MODELS.items()
    for name in names.split()
)
MODELS += tuple(
    (source, name, None, "") for source, names in DEPLOYED.items() for name in names.split()
)
