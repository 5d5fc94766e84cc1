"""The shipped protocols: those of the four papers, a fair one, and our default for one's own data.

Numbers: the papers' own where they are known (VPT: section 4.1 and its released scripts; E2VPT and SPT: theirs), else
said so in `source`. Learning rates of VPT and E2VPT are for 256 images a step.
"""

from __future__ import annotations

from promptvit.registry import Registry
from promptvit.search.protocol import RATE, Protocol, Recipe, Settings

DECAY = "train.weight_decay"
LENGTH = "method.length"
BATCH = "train.batch_size"
OPTIMIZER = "train.optimizer"
DECAYS = (0.01, 0.001, 0.0001, 0.0)
RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
MAE_RATES = (*RATES, 0.025, 0.005, 0.0025)
LARGER_RATES = (1000.0, 500.0, 250.0, 100.0)
FINETUNE_RATES = (0.005, 0.001, 0.0005, 0.0001)
RESNET_RATES = (0.5, 0.25, 0.05, 0.025, 0.005, 0.0025, 0.0005, 0.00025)
RESNET_FGVC_RATES = (0.05, 0.025, 0.005, 0.0025)
RESNET_PROMPT_RATES = (5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01)
PAPER_SEEDS = (42, 44, 82, 100, 800)

PROBES = ("linear", "mlp*", "side")
PROMPTS = ("vpt*", "cls*", "mixed", "spt*", "e2vpt", "kv")
WEIGHTS = ("full", "bias", "adapter", "lora")

FULL_REGULARISATION: dict[str, Settings] = {
    "*mae*": {"method.drop_path": 0.1},
    "*moco*": {"method.drop_path": 0.0},
    "vit*": {"method.dropout": 0.1},
    "swin_tiny*": {"method.drop_path": 0.2},
    "swin_small*": {"method.drop_path": 0.3},
    "swin*": {"method.drop_path": 0.5},
}
"""What keeps full fine-tuning from overfitting in VPT, by backbone, the first pattern that fits."""

PROTOCOLS: Registry[Protocol] = Registry("protocol", "All names: `promptvit bench --help`")

SGD: Settings = {OPTIMIZER: "sgd", "train.decays": "all"}
ADAMW: Settings = {OPTIMIZER: "adamw", "train.decays": "weights", "train.adam_epsilon": 1e-6}


def _register(protocol: Protocol) -> Protocol:
    return PROTOCOLS.register(protocol.name, protocol)


def _vpt_recipes(rates: tuple[float, ...], prompt_rates: tuple[float, ...], resnet: tuple[float, ...]):
    """The grids of VPT: lengths decide the batch size, and so stand in grids of their own."""
    decayed = {DECAY: DECAYS}

    def prompts(lengths: tuple[int, ...], batch: int, values: tuple[float, ...] = prompt_rates):
        return {LENGTH: lengths, BATCH: (batch,), RATE: values, **decayed}

    vit = (prompts((1, 5, 10, 50), 128), prompts((100, 200), 64))
    shallow = (*vit, prompts((1, 5, 10, 50), 128, LARGER_RATES), prompts((100, 200), 64, LARGER_RATES))
    deep = {**SGD, "method.dropout": 0.1}
    pixels = {LENGTH: (1, 3, 5, 7, 9, 11), BATCH: (128,), RATE: prompt_rates, **decayed}
    linear, finetune = {RATE: rates, **decayed}, {RATE: FINETUNE_RATES, **decayed}
    large: Settings = {**SGD, BATCH: 2048}
    adapters = {**finetune, "method.reduction": (8, 64, 256)}
    return (
        Recipe(methods=PROBES, backbones=("*mae*",), settings=large, grids=({RATE: MAE_RATES, **decayed},)),
        Recipe(methods=PROBES, backbones=("swin*", "convnext*"), settings={**SGD, BATCH: 1024}, grids=(linear,)),
        Recipe(methods=PROBES, settings=large, grids=(linear,)),
        Recipe(
            methods=("pixel*",),
            backbones=("resnet*",),
            settings={**SGD, BATCH: 256},
            grids=({LENGTH: (1, 3, 5, 7, 9, 11), RATE: RESNET_PROMPT_RATES, **decayed},),
        ),
        Recipe(methods=("pixel*",), backbones=("convnext*",), settings=SGD, grids=(pixels,)),
        Recipe(methods=("vpt-deep",), backbones=("swin*",), settings=deep, grids=(prompts((1, 5, 10, 50), 80),)),
        Recipe(methods=("vpt*",), backbones=("swin*",), settings=SGD, grids=(prompts((1, 5, 10, 50), 80),)),
        Recipe(methods=("vpt-deep", "vpt-bias"), settings=deep, grids=vit),
        Recipe(methods=("vpt-shallow",), settings=SGD, grids=shallow),
        Recipe(methods=("vpt*", "mixed", "pixel*"), settings=SGD, grids=vit),
        Recipe(methods=("cls*",), settings={**SGD, BATCH: 128}, grids=({RATE: prompt_rates, **decayed},)),
        *(
            Recipe(
                methods=(name,),
                backbones=("resnet*",),
                settings={**ADAMW, BATCH: batch},
                grids=({RATE: resnet, **decayed},),
            )
            for name, batch in (("partial*", 2048), ("*", 384))
        ),
        Recipe(
            methods=("partial*",), backbones=("swin*", "convnext*"), settings={**ADAMW, BATCH: 1024}, grids=(finetune,)
        ),
        Recipe(methods=("partial*",), settings={**ADAMW, BATCH: 1280}, grids=(finetune,)),
        Recipe(methods=("adapter",), settings={**ADAMW, BATCH: 128}, grids=(adapters,)),
        *(
            Recipe(methods=("full",), backbones=(name,), settings={**ADAMW, BATCH: 128, **kept}, grids=(finetune,))
            for name, kept in FULL_REGULARISATION.items()
        ),
        Recipe(methods=WEIGHTS, settings={**ADAMW, BATCH: 128}, grids=(finetune,)),
    )


PAPER: Settings = {
    "train.epochs": 100,
    "train.warmup_epochs": 10.0,
    "train.schedule_steps": "epoch",
    "train.rate_batch": 256,
    "train.head": "paper",
    "train.clip_norm": None,
    "data.normalisation": "imagenet",
}
"""VPT, on every backbone: 100 epochs, a rate per epoch whose first is 0, ImageNet's mean and deviation."""
SQUASHED: Settings = {"data.geometry": "squash", "data.interpolation": "tf1-bilinear"}
CROPPED: Settings = {
    "data.geometry": "crop",
    "data.crop_fraction": 0.875,  # 256 to 224
    "data.interpolation": "bilinear",
    "data.augment": "crop+flip",
}

VPT = _register(
    Protocol(
        name="vpt",
        source="Jia et al., ECCV 2022: VTAB-1k, chosen on 200 validation images, trained again on all 1,000, 5 seeds",
        settings={**PAPER, **SQUASHED},
        recipes=_vpt_recipes(RATES, RATES, RESNET_RATES),
        retrain="train+val",
        seeds=PAPER_SEEDS,
        fgvc="vpt-fgvc",
    )
)
VPT_FGVC = _register(
    Protocol(
        name="vpt-fgvc",
        source="Jia et al., ECCV 2022: FGVC, chosen by the last epoch's validation accuracy, one run, on train",
        settings={**PAPER, **CROPPED},
        recipes=_vpt_recipes(RATES, RATES[:-1], RESNET_FGVC_RATES),
        seeds=(0,),
    )
)

_E2VPT_GRID = ({RATE: RATES, DECAY: DECAYS},)
_E2VPT_FGVC_GRID = ({RATE: RATES[:-1], DECAY: DECAYS},)
_E2VPT_SETTINGS: Settings = {**SGD, BATCH: 64, "method.prompts.dropout": 0.1}
E2VPT = _register(
    Protocol(
        name="e2vpt",
        source="Han et al., ICCV 2023: VTAB-1k. Lengths belong to the row (published per task); pruning comes after "
        "(`prune`), in our cheap search, not in the paper's 72 retrainings",
        settings={**PAPER, **SQUASHED},
        recipes=(
            Recipe(
                methods=("e2vpt",), backbones=("swin*",), settings={**_E2VPT_SETTINGS, BATCH: 80}, grids=_E2VPT_GRID
            ),
            Recipe(
                methods=("e2vpt",),
                backbones=("*mae*", "*moco*"),
                settings={**_E2VPT_SETTINGS, BATCH: 128},
                grids=_E2VPT_GRID,
            ),
            Recipe(methods=("e2vpt",), settings=_E2VPT_SETTINGS, grids=_E2VPT_GRID),
            Recipe(methods=("kv",), settings={**SGD, BATCH: 64}, grids=_E2VPT_GRID),
            *VPT.recipes,
        ),
        retrain="train+val",
        seeds=PAPER_SEEDS,
        fgvc="e2vpt-fgvc",
    )
)
_register(
    Protocol(
        name="e2vpt-fgvc",
        source="Han et al., ICCV 2023: FGVC, chosen by the best epoch's validation accuracy, final runs on train alone",
        settings={**PAPER, **CROPPED},
        recipes=(
            *(
                Recipe(
                    methods=("e2vpt", "kv"),
                    backbones=(name,),
                    settings={**_E2VPT_SETTINGS, BATCH: batch},
                    grids=_E2VPT_FGVC_GRID,
                )
                for name, batch in (("*moco*", 64), ("swin*", 80), ("*", 128))
            ),
            *VPT_FGVC.recipes,
        ),
        epoch="best-val",
        seeds=PAPER_SEEDS,
    )
)

_SPT_SETTINGS: Settings = {
    "train.epochs": 100,
    "train.warmup_epochs": 10.0,
    OPTIMIZER: "adamw",
    BATCH: 32,
    "train.drop_last": True,
    "train.final_rate": 1e-8,
    "train.head": "truncated",
    "train.clip_norm": None,
}
_SPT_RECIPES = (
    Recipe(
        methods=PROMPTS,
        backbones=("*mae*", "*moco*"),
        grids=(
            {
                RATE: (0.05, 0.1),
                "train.delta_weight_decay": (0.001, 0.005, 0.01),
                "train.head_weight_decay": (0.05, 0.1, 0.5, 1.0),
            },
        ),
    ),
    Recipe(
        methods=PROMPTS,
        grids=(
            {
                RATE: (0.001, 0.005, 0.01, 0.02),
                "train.delta_weight_decay": (0.0005, 0.01, 0.1),
                "train.head_weight_decay": (3.0, 10.0),
            },
        ),
    ),
    Recipe(grids=({RATE: (0.0001, 0.001, 0.01), DECAY: (0.0001, 0.01)},)),
)
SPT = _register(
    Protocol(
        name="spt",
        source="Wang et al., ICML 2024: its optimiser, schedule and images of VTAB-1k; settings per task were never "
        "published, so the grid spans those of the first author's next project; chosen on validation images, "
        "where the released code takes the best epoch on test (`--protocol.epoch best-test`)",
        settings={**_SPT_SETTINGS, "data.geometry": "crop", "data.crop_fraction": 1.0, "data.interpolation": "bicubic"},
        recipes=_SPT_RECIPES,
        retrain="train+val",
        seeds=(0, 1, 2),
        fgvc="spt-fgvc",
    )
)
_register(
    Protocol(
        name="spt-fgvc",
        source="Wang et al., ICML 2024: FGVC, as `spt` with random resized crops and flips",
        settings={
            **_SPT_SETTINGS,
            "data.geometry": "crop",
            "data.crop_fraction": 0.875,
            "data.interpolation": "bicubic",
            "data.augment": "resized-crop+flip",
        },
        recipes=_SPT_RECIPES,
        retrain="train+val",
    )
)

_register(
    Protocol(
        name="vpt-or-ft",
        source="Han et al., ICLR 2024: ViT-B/16 on VTAB-1k. Full fine-tuning with AdamW, where every decay above 0 is "
        "0.01 in the released code; prompts and prompts with all weights with SGD",
        settings={**PAPER, **SQUASHED},
        recipes=(
            Recipe(
                methods=("full",),
                settings={
                    BATCH: 128,
                    "train.warmup_epochs": 5.0,
                    "method.dropout": 0.1,
                    "train.decays": "weights",
                    "train.adam_epsilon": ADAMW["train.adam_epsilon"],
                },
                grids=(
                    {RATE: FINETUNE_RATES, OPTIMIZER: ("adamw",), DECAY: (0.01,)},
                    {RATE: FINETUNE_RATES, OPTIMIZER: ("sgd",), DECAY: (0.0,)},
                ),
            ),
            Recipe(
                methods=("vpt-deep",),
                settings={**SGD, BATCH: 64, "method.dropout": 0.1},
                grids=({RATE: RATES, DECAY: DECAYS},),
            ),
            Recipe(methods=("mixed",), settings={**SGD, BATCH: 64}, grids=({RATE: RATES, DECAY: DECAYS},)),
            *VPT.recipes,
        ),
        retrain="train+val",
        seeds=PAPER_SEEDS,
        fgvc="vpt-fgvc",
    )
)

_register(
    Protocol(
        name="fair",
        source="ours: one optimiser, batch and budget for every method, the checkpoint's own normalisation, rates "
        "around each method's own; full fine-tuning with the rates and drop path that later papers found for it",
        settings={
            "train.epochs": 100,
            "train.warmup_epochs": 10.0,
            BATCH: 64,
            "train.clip_norm": 1.0,
            "data.normalisation": "checkpoint",
            "data.geometry": "squash",
        },
        recipes=(
            Recipe(
                methods=("full",),
                backbones=("vit*", "swin*", "convnext*"),
                grids=({RATE: (3e-5, 1e-4, 3e-4, 1e-3), DECAY: (0.0001, 0.01), "method.drop_path": (0.0, 0.1)},),
            ),
            Recipe(
                methods=("vpt*", "spt*", "mixed"),
                grids=({LENGTH: (5, 20, 100), "train.delta_weight_decay": (0.0,), DECAY: (0.0001, 0.01)},),
                rate_factors=(0.1, 1 / 3, 1.0, 3.0),
            ),
            Recipe(
                methods=("lora",),
                grids=({"method.rank": (2, 8, 32), DECAY: (0.0001, 0.01)},),
                rate_factors=(0.1, 1 / 3, 1.0, 3.0),
            ),
            Recipe(grids=({DECAY: (0.0001, 0.01)},), rate_factors=(0.1, 1 / 3, 1.0, 3.0)),
        ),
        retrain="train+val",
        seeds=(18, 45, 25),
    )
)

_register(
    Protocol(
        name="quick",
        source="ours: the default recipe of `promptvit train`, a third of the method's learning rate, the rate itself, "
        "and three times that",
        recipes=(Recipe(rate_factors=(1 / 3, 1.0, 3.0)),),
    )
)
