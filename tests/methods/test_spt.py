import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from timm.layers.drop import DropPath
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import promptvit as pv
from promptvit.counting import count
from promptvit.errors import ConfigError, DataError
from promptvit.methods.patch_tokens import cluster, compat_windows, draw, windows
from promptvit.methods.samples import DatasetSamples
from promptvit.methods.spt import SPT

SOURCES = ("random", "mean", "max", "kmeans")
IMAGES, PATCHES, CLASSES = 12, 16, 3
KINDS = {
    "cls": {},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "registers without position": {"reg_tokens": 4, "no_embed_class": True},
}


def eva():
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return Eva(**size, num_reg_tokens=2, global_pool="token", use_rot_pos_emb=True, qkv_fused=False, init_values=0.1)


def swin():
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0)


@pytest.fixture(autouse=True)
def _float64():
    """Prompts as precise as the small backbones."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[*KINDS, "eva", "swin"])
def any_model(request, make_vit, make_small):
    """A timm model of each kind that takes prompts."""
    if request.param in KINDS:
        return make_vit(**KINDS[request.param])
    return make_small({"eva": eva, "swin": swin}[request.param])


@pytest.fixture
def vit(make_vit):
    """Three blocks, a CLS token."""
    return pv.from_timm(make_vit())


@pytest.fixture
def data():
    """Images and labels: six of class 0, four of class 1, two of class 2."""
    images = torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64)
    return TensorDataset(images, torch.tensor([0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 1, 0]))


def started(backbone, method, data, batch_size=5):
    """The prompts of each block [P, D] as `method` starts them."""
    model = pv.tune(backbone, method, CLASSES, samples=DatasetSamples(data, batch_size))
    return [block.detach() for stage in model.delta.prompts for block in stage]


def literal_tokens(model, images, positions=False):
    """Patch tokens entering each block, by hooks on timm's own modules: [n, M, D] per block."""
    blocks = [block for layer in model.layers for block in layer.blocks] if hasattr(model, "layers") else model.blocks
    caught = []
    hooks = [block.register_forward_pre_hook(lambda _, given: caught.append(given[0])) for block in blocks]
    patches = []
    hooks.append(model.patch_embed.register_forward_hook(lambda _, __, out: patches.append(out)))
    model(images)
    for hook in hooks:
        hook.remove()
    prefix = getattr(model, "num_prefix_tokens", 0)
    entering = [x.flatten(1, 2) if x.ndim == 4 else x[:, prefix:] for x in caught]
    return [*([entering[0]] if positions else [patches[0].reshape(entering[0].shape)]), *entering[1:]]


# --- which tokens --------------------------------------------------------------------------------------------------


def test_random_prompts_are_the_recorded_tokens_of_the_right_block(any_model, data):
    backbone = pv.from_timm(any_model)
    method = SPT(length=5)
    prompts = started(backbone, method, data)
    samples = DatasetSamples(data)
    collectors = method.collectors(backbone, samples, method.chosen(samples), backbone.info.depth)
    for tokens, block, collector in zip(literal_tokens(any_model, data.tensors[0]), prompts, collectors, strict=True):
        image, token = collector.pairs.T
        assert len(np.unique(collector.pairs, axis=0)) == 5
        torch.testing.assert_close(block, tokens[image, token], rtol=0, atol=1e-10)
    assert len({collector.pairs.tobytes() for collector in collectors}) == len(collectors)


@pytest.mark.parametrize("source", ["mean", "max"])
def test_averaged_windows_are_those_of_the_right_block(any_model, data, source):
    prompts = started(pv.from_timm(any_model), SPT(length=3, source=source), data)
    for tokens, block in zip(literal_tokens(any_model, data.tensors[0]), prompts, strict=True):
        parts = [tokens[:, part] for part in windows(tokens.shape[1], 3)]
        pooled = [part.mean(dim=1) if source == "mean" else part.amax(dim=1) for part in parts]
        torch.testing.assert_close(block, torch.stack(pooled, dim=1).mean(dim=0), rtol=0, atol=1e-10)


def test_centres_are_means_of_their_tokens_of_the_right_block(any_model, data):
    prompts = started(pv.from_timm(any_model), SPT(length=4, source="kmeans"), data)
    for tokens, block in zip(literal_tokens(any_model, data.tensors[0]), prompts, strict=True):
        rows = tokens.flatten(0, 1)
        nearest = torch.cdist(rows, block).argmin(dim=1)
        for centre in range(4):
            torch.testing.assert_close(block[centre], rows[nearest == centre].mean(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_the_first_block_has_positions_only_if_asked(make_vit, data, source):
    model = make_vit()
    without = started(pv.from_timm(model), SPT(length=3, source=source), data)
    having = started(pv.from_timm(model), SPT(length=3, source=source, layer0_positions=True), data)
    assert not torch.allclose(without[0], having[0])
    for ours, theirs in zip(without[1:], having[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_prompt_with_position_is_the_one_without_plus_the_position_of_its_token(vit, data):
    method = SPT(length=7, layer0_positions=True)
    samples = DatasetSamples(data)
    pairs = method.collectors(vit, samples, method.chosen(samples), 1)[0].pairs
    having, without = started(vit, method, data)[0], started(vit, SPT(length=7), data)[0]
    torch.testing.assert_close(having - vit.model.pos_embed[0, 1:][pairs[:, 1]], without, rtol=0, atol=1e-10)


def test_a_norm_before_the_first_block_counts_as_embedding(make_vit, data):
    model = make_vit(pre_norm=True)
    prompts = started(pv.from_timm(model), SPT(length=5), data)
    rows = literal_tokens(model, data.tensors[0], positions=True)[0].flatten(0, 1)
    assert torch.cdist(prompts[0], rows).amin(dim=1).max() < 1e-6


def test_no_prompt_is_a_prefix_row(make_vit, data):
    backbone = pv.from_timm(make_vit(reg_tokens=4))
    prompts = started(backbone, SPT(length=IMAGES * PATCHES), data)
    x, _ = backbone.embed(data.tensors[0])
    assert torch.cdist(prompts[0], x[0, :5]).min() > 1e-3
    for block, tokens in zip(prompts, literal_tokens(backbone.model, data.tensors[0]), strict=True):
        ours = sorted(map(tuple, block.tolist()))  # every patch token once
        assert np.allclose(ours, sorted(map(tuple, tokens.flatten(0, 1).tolist())), atol=1e-9)


def test_later_blocks_are_read_with_the_earlier_prompts_in_place(vit, data):
    plain = started(vit, SPT(length=4), data)
    sequential = started(vit, SPT(length=4, capture="sequential"), data)
    torch.testing.assert_close(plain[0], sequential[0], rtol=0, atol=0)
    assert not torch.allclose(plain[1], sequential[1])
    method = SPT(length=4)
    samples = DatasetSamples(data)
    image, token = method.collectors(vit, samples, method.chosen(samples), 3)[1].pairs.T
    x, _ = vit.embed(data.tensors[0])
    joined = torch.cat([x, sequential[0].expand(IMAGES, -1, -1)], dim=1)
    entering = vit.model.blocks[0](joined)[:, 1 : 1 + PATCHES]
    torch.testing.assert_close(sequential[1], entering[image, token], rtol=0, atol=1e-10)


# --- exact statistics ----------------------------------------------------------------------------------------------


@pytest.fixture
def transparent(make_vit):
    """A backbone whose blocks change nothing: all of them see the embedding of the patches."""
    model = make_vit(depth=2)
    with torch.no_grad():
        model.pos_embed.zero_()
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    return pv.from_timm(model)


def test_statistics_of_a_transparent_backbone_are_those_of_its_patches(transparent, data):
    tokens = transparent.embed_patches(data.tensors[0])  # [n, M, D]
    for source, expected in {
        "mean": tokens.mean(dim=(0, 1)),
        "max": tokens.amax(dim=1).mean(dim=0),
        "kmeans": tokens.mean(dim=(0, 1)),
    }.items():
        for block in started(transparent, SPT(length=1, source=source), data):
            torch.testing.assert_close(block[0], expected, rtol=0, atol=1e-10)
    for block in started(transparent, SPT(length=PATCHES, source="mean"), data):
        torch.testing.assert_close(block, tokens.mean(dim=0), rtol=0, atol=1e-10)
    of_class = torch.stack([tokens[data.tensors[1] == label].mean(dim=0) for label in range(CLASSES)])
    for block in started(transparent, SPT(length=PATCHES, source="mean", balanced=True), data):
        torch.testing.assert_close(block, of_class.mean(dim=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 3, 5, 16])
def test_pooled_prompts_keep_the_mean_and_the_order(vit, data, length):
    tokens = vit.embed_patches(data.tensors[0])
    mean, largest = (started(vit, SPT(length=length, source=source), data)[0] for source in ("mean", "max"))
    assert (largest >= mean - 1e-12).all()
    sizes = torch.tensor([part.stop - part.start for part in windows(PATCHES, length)], dtype=torch.float64)
    torch.testing.assert_close((sizes / PATCHES) @ mean, tokens.mean(dim=(0, 1)), rtol=0, atol=1e-10)


def test_all_windows_of_one_image_are_its_tokens(vit, data):
    one = TensorDataset(*(part[:1] for part in data.tensors))
    for source, across in itertools.product(("mean", "max"), ("average", "sample")):
        prompts = started(vit, SPT(length=PATCHES, source=source, across=across), one)
        for block, tokens in zip(prompts, literal_tokens(vit.model, one.tensors[0]), strict=True):
            distance = torch.cdist(tokens[0], block)
            assert distance.amin(dim=1).max() < 1e-6


def test_all_sources_agree_on_a_constant_image(vit):
    constant = TensorDataset(torch.full((2, 3, 16, 16), 0.3, dtype=torch.float64), torch.tensor([0, 1]))
    first = [started(vit, SPT(length=3, source=source), constant)[0] for source in SOURCES]
    for other in first[1:]:
        torch.testing.assert_close(first[0], other, rtol=0, atol=1e-10)


def test_sampled_windows_are_windows(vit, data):
    method = SPT(length=5, source="mean", across="sample")
    prompts = started(vit, method, data)
    for block, tokens in zip(prompts, literal_tokens(vit.model, data.tensors[0]), strict=True):
        pooled = torch.stack([tokens[:, part].mean(dim=1) for part in windows(PATCHES, 5)], dim=1).flatten(0, 1)
        assert torch.cdist(block, pooled).amin(dim=1).max() < 1e-6


# --- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 15, 50, 80, 100, 196])
def test_windows_use_every_token_once(length):
    parts = windows(196, length)
    assert [token for part in parts for token in range(196)[part]] == list(range(196))
    sizes = {part.stop - part.start for part in parts}
    assert len(parts) == length
    assert max(sizes) - min(sizes) <= 1


# Spec, section 2: P, size of a window, length of the last one, tokens in no window (the whole image apart).
OFFICIAL = [
    (2, 196, 196, 0), (5, 49, 196, 0), (10, 21, 7, 0), (15, 14, 196, 0), (20, 10, 6, 0), (30, 6, 4, 18),
    (40, 5, 1, 0), (50, 4, 196, 0), (60, 3, 1, 18), (80, 2, 196, 38), (100, 1, 196, 97), (197, 1, 196, 0),
]  # fmt: skip


@pytest.mark.parametrize(("length", "size", "last", "lost"), OFFICIAL)
def test_compat_windows_have_the_official_faults(length, size, last, lost):
    parts = compat_windows(196, length)
    assert len(parts) == length
    assert {part.stop - part.start for part in parts[:-1]} == {size}
    assert parts[-1].stop - parts[-1].start == last
    own = parts[:-1] if last == 196 else parts
    assert 196 - len({token for part in own for token in range(196)[part]}) == lost


def test_compat_windows_are_used_only_if_asked(vit, data):
    tokens = vit.embed_patches(data.tensors[0])
    sound, compat = (started(vit, SPT(length=5, source="mean", compat_pooling=on), data)[0] for on in (False, True))
    whole = tokens.mean(dim=(0, 1))  # 16 tokens, windows of 4, nothing remains: the last one is the whole image
    torch.testing.assert_close(compat[-1], whole, rtol=0, atol=1e-10)
    assert torch.cdist(sound, whole[None]).min() > 1e-3


# --- draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("capture", ["plain", "sequential"])
def test_the_batch_size_does_not_matter(vit, data, source, capture):
    method = SPT(length=4, source=source, capture=capture)
    reference = started(vit, method, data, batch_size=64)
    for size in (1, 3, 7):
        for ours, theirs in zip(started(vit, method, data, batch_size=size), reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("source", ["random", "kmeans"])
def test_another_seed_draws_other_tokens_and_shallow_is_the_first_of_deep(vit, data, source):
    deep = started(vit, SPT(length=4, source=source), data)
    (shallow,) = started(vit, SPT(length=4, source=source, depth="shallow"), data)
    torch.testing.assert_close(shallow, deep[0], rtol=0, atol=0)
    other = started(vit, SPT(length=4, source=source, seed=1), data)
    assert not torch.allclose(deep[0], other[0])
    assert [tuple(block.shape) for block in deep] == [(4, 24)] * 3


def test_draws_are_uniform():
    counts = np.zeros(30)
    for seed in range(10_000):
        image, token = draw(np.random.default_rng((seed, 1)), images=6, tokens=5, count=4).T
        np.add.at(counts, image * 5 + token, 1)
    assert counts.sum() == 40_000
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("count", [3, 4, 10, 30, 144])
def test_balanced_draws_have_the_same_number_of_every_class(count):
    classes = np.array([0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 1, 0])
    pairs = draw(np.random.default_rng(0), images=12, tokens=12, count=count, classes=classes)
    assert len(np.unique(pairs, axis=0)) == count
    per_class = np.bincount(classes[pairs[:, 0]], minlength=3)
    has = np.bincount(classes) * 12
    full = per_class == has
    if not full.all():
        assert np.ptp(per_class[~full]) <= 1
        assert per_class[full].max(initial=0) <= per_class[~full].min() + 1


def test_labels_matter_only_to_balance(vit, data):
    permuted = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
    ours, theirs = (started(vit, SPT(length=4), given)[2] for given in (data, permuted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours, theirs = (started(vit, SPT(length=4, balanced=True), given)[2] for given in (data, permuted))
    assert not torch.allclose(ours, theirs)


class Counting(DatasetSamples):
    """Remembers the images that were asked for."""

    def images(self, numbers):
        self.asked = [*getattr(self, "asked", []), *numbers]
        return super().images(numbers)


def test_only_needed_images_are_read(vit, data):
    samples = Counting(data)
    pv.tune(vit, SPT(length=2), CLASSES, samples=samples)
    drawn = samples.asked[1:]  # the first one tells the number of patches
    assert len(drawn) == len(set(drawn)) <= 2 * 3
    samples = Counting(data)
    pv.tune(vit, SPT(length=2, source="mean", images=5), CLASSES, samples=samples)
    assert len(set(samples.asked)) == 5
    samples = Counting(data)
    pv.tune(vit, SPT(length=2, source="mean", images=5, balanced=True), CLASSES, samples=samples)
    assert sorted(np.bincount(data.tensors[1][samples.asked[1:]])) == [1, 2, 2]


# --- k-means -------------------------------------------------------------------------------------------------------


def test_clusters_of_few_distinct_tokens_are_exact():
    points = torch.randn(4, 6, dtype=torch.float64)
    centres = cluster(points.repeat(10, 1), centres=4, seed=0)
    assert torch.cdist(points, centres).amin(dim=1).max() < 1e-6
    repeated = cluster(points.repeat(10, 1), centres=6, seed=0)
    assert torch.cdist(points, repeated).amin(dim=1).max() < 1e-6


def test_clusters_scale_with_their_tokens():
    tokens = torch.randn(200, 6, dtype=torch.float64)
    ours, theirs = cluster(tokens, 5, seed=3), cluster(2.5 * tokens + 1, 5, seed=3)
    torch.testing.assert_close(2.5 * ours + 1, theirs, rtol=0, atol=1e-8)


def test_clusters_of_a_bounded_sample_are_about_as_good(vit, data, monkeypatch):
    centres = torch.randn(5, 6, dtype=torch.float64) * 10
    blobs = (centres[:, None] + torch.randn(5, 400, 6, dtype=torch.float64)).flatten(0, 1)
    kept = blobs[torch.randperm(len(blobs))[:200]]

    def inertia(found):
        return torch.cdist(blobs, found).amin(dim=1).square().sum()

    assert inertia(cluster(kept, 5, seed=0)) <= 1.1 * inertia(cluster(blobs, 5, seed=0))
    monkeypatch.setattr("promptvit.methods.spt.TOKENS_PER_CENTRE", 8)
    method, samples = SPT(length=4, source="kmeans"), DatasetSamples(data)
    collectors = method.collectors(vit, samples, method.chosen(samples), 3)
    assert [len(collector.pairs) for collector in collectors] == [32] * 3


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_the_start_leaves_backbone_and_chance_as_they_were(make_vit, data, source):
    model = make_vit(drop_path_rate=0.3, proj_drop_rate=0.2)
    backbone = pv.from_timm(model)
    before = copy.deepcopy(model.state_dict())
    flags = [(module.training, type(module)) for module in model.modules()]
    ours = started(backbone, SPT(length=3, source=source), data)
    state, there = torch.random.get_rng_state(), np.random.get_state()
    delta = pv.tune(backbone, SPT(length=3, source=source), CLASSES, samples=data)
    drawn = torch.random.get_rng_state()
    torch.random.set_rng_state(state)
    pv.tune(backbone, pv.VPT(length=3), CLASSES)
    assert torch.equal(drawn, torch.random.get_rng_state())  # chance went as far as in VPT
    assert (np.random.get_state()[1] == there[1]).all()
    assert np.random.get_state()[2] == there[2]
    for theirs, block in zip(ours, delta.delta.prompts[0], strict=True):
        torch.testing.assert_close(theirs, block.detach(), rtol=0, atol=1e-10)  # in batches of another size
    assert [(module.training, type(module)) for module in model.modules()] == flags
    assert any(isinstance(module, DropPath) for module in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_it_is_vpt_with_another_start(vit, data, depth, tmp_path):
    spt = pv.tune(vit, SPT(length=4, depth=depth), CLASSES, samples=data)
    vpt = pv.tune(vit, pv.VPT(length=4, depth=depth), CLASSES)
    assert dict(spt.named_parameters()).keys() == dict(vpt.named_parameters()).keys()
    assert spt.trained_tensors().keys() == vpt.trained_tensors().keys()
    vpt.load_state_dict(spt.state_dict())
    images = data.tensors[0][:3]
    torch.testing.assert_close(spt(images), vpt(images), rtol=0, atol=0)
    loaded = pv.load(spt.save(tmp_path / "delta"), backbone=vit)
    assert loaded.method == spt.method
    torch.testing.assert_close(loaded(images), spt(images), rtol=0, atol=1e-6)


def test_fixed_prompts_get_no_gradient(vit, data):
    model = pv.tune(vit, SPT(length=4, fixed=True), CLASSES, samples=data)
    nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize(("method", "delta"), [(SPT(depth="shallow"), 76_800), (SPT(), 184_320)])
def test_counts_of_the_paper(method, delta):
    with torch.device("meta"):
        backbone = pv.from_timm(timm.create_model("vit_base_patch16_224", num_classes=0))
    assert count(backbone, method, 200).trained == delta + 153_800
    fgvc = [count(backbone, method, classes).trained for classes in (200, 555, 102, 120, 196)]
    assert round(sum(fgvc) / 5) == {76_800: 257_207, 184_320: 364_727}[delta]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "at least 1 prompt"),
        ({"images": 0}, "images=0"),
        ({"seed": -1}, "seed=-1"),
        ({"source": "median"}, "expected random, mean, max or kmeans"),
        ({"across": "sample"}, "only mean and max pool"),
        ({"compat_pooling": True}, "only mean and max pool"),
        ({"source": "mean", "compat_pooling": True, "length": 1}, "divide by length - 1"),
        ({"depth": "shallow", "capture": "sequential"}, "no earlier prompts"),
    ],
)
def test_wrong_fields_are_refused(fields, message, untyped):
    with pytest.raises(ConfigError, match=message):
        SPT(**fields)


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (SPT(length=IMAGES * PATCHES + 1), IMAGES * PATCHES),
        (SPT(length=IMAGES * PATCHES + 1, source="kmeans"), IMAGES * PATCHES),
        (SPT(length=PATCHES + 1, source="mean"), PATCHES),
        (SPT(length=PATCHES + 2, source="max", compat_pooling=True), PATCHES + 1),
        (SPT(length=PATCHES * 2 + 1, images=2), PATCHES * 2),
    ],
)
def test_too_few_tokens(vit, data, method, most):
    with pytest.raises(ConfigError, match=f"at most {most} prompts"):
        pv.tune(vit, method, CLASSES, samples=data)


def test_samples_of_no_use(vit, data, untyped):
    images, labels = data.tensors
    with pytest.raises(DataError, match="no training images"):
        pv.tune(vit, SPT(), CLASSES, samples=TensorDataset(images[:0], labels[:0]))
    with pytest.raises(ConfigError, match="hand over its `dataset`"):
        pv.tune(vit, SPT(), CLASSES, samples=DataLoader(data))
    with pytest.raises(DataError, match=r"samples\[0\] is a tuple of torch.float64 \[12, 3, 16, 16\]"):
        pv.tune(vit, SPT(), CLASSES, samples=[data.tensors])
    with pytest.raises(DataError, match="one class"):
        pv.tune(vit, SPT(balanced=True), CLASSES, samples=TensorDataset(images, torch.zeros_like(labels)))
    with pytest.raises(ConfigError, match="starts from the task's images"):
        pv.tune(vit, SPT(), CLASSES)


@pytest.mark.parametrize("capture", ["plain", "sequential"])
def test_nan_features_are_named_and_change_nothing(vit, data, capture):
    images = data.tensors[0].clone()
    images[7, 0, 3, 3] = torch.nan
    method = SPT(source="mean", length=2, capture=capture)
    delta = method.build(vit)
    before = copy.deepcopy(delta.state_dict())
    with pytest.raises(DataError, match="training image 7 gives tokens at block 1"):
        method.start(delta, vit, DatasetSamples(TensorDataset(images, data.tensors[1])), CLASSES)
    for name, tensor in delta.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "item",
    [
        (torch.zeros(3, 16, 16, dtype=torch.uint8), 0),
        (torch.zeros(3, 16, 16), "cat"),
        (torch.zeros(3, 16, 16), torch.tensor([0.0, 1.0])),
        (torch.zeros(3, 16, 16), None),
        (torch.zeros(3, 16, 16), -1),
        torch.zeros(3, 16, 16),
    ],
)
def test_items_that_are_no_image_and_label(vit, item, untyped):
    with pytest.raises(DataError, match=r"samples\[0\] is a .*expected a normalised image"):
        pv.tune(vit, SPT(balanced=True), CLASSES, samples=[item, item])


def test_images_of_several_sizes_and_mappings_are_refused(vit, untyped):
    sizes = [(torch.zeros(3, 16, 16), 0), (torch.zeros(3, 16, 20), 1)]
    with pytest.raises(DataError, match=r"samples\[1\] has shape \[3, 16, 20\]; expected \[3, 16, 16\]"):
        pv.tune(vit, SPT(source="mean", length=2), CLASSES, samples=sizes)
    with pytest.raises(ConfigError, match="samples is a dict"):
        pv.tune(vit, SPT(), CLASSES, samples={"image": 1})
    with pytest.raises(ConfigError, match="batch_size=0"):
        DatasetSamples(sizes, batch_size=0)


def test_augment_is_for_our_own_training(vit, data):
    for samples in (data, DatasetSamples(data)):
        with pytest.raises(ConfigError, match="dataset's own transform"):
            pv.tune(vit, SPT(augment=True), CLASSES, samples=samples)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("capture", ["plain", "sequential"])
def test_a_backbone_in_bfloat16(make_vit, data, source, capture):
    backbone = pv.from_timm(make_vit().bfloat16())
    prompts = started(backbone, SPT(length=3, source=source, capture=capture), data)
    exact = started(pv.from_timm(make_vit()), SPT(length=3, source="mean"), data)
    if source == "mean" and capture == "plain":
        torch.testing.assert_close(prompts[0], exact[0], rtol=0.05, atol=0.05)
    assert all(block.isfinite().all() for block in prompts)


def test_padded_images_of_another_size(make_vit):
    model = make_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = torch.randn(4, 3, 18, 22)  # five by six patches of 4
    data = TensorDataset(images, torch.tensor([0, 1, 2, 0]))
    prompts = started(pv.from_timm(model), SPT(length=30, source="mean"), data)
    tokens = model.patch_embed(images).flatten(1, 2)
    torch.testing.assert_close(prompts[0], tokens.mean(dim=0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("balanced", [False, True])
def test_another_seed_draws_other_images(vit, data, balanced):
    samples = DatasetSamples(data)
    chosen = {tuple(SPT(images=5, balanced=balanced, seed=seed).chosen(samples)) for seed in range(6)}
    assert len(chosen) > 1
    assert all(len(set(numbers)) == 5 for numbers in chosen)


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_kept_does_not_grow_with_the_images(vit, monkeypatch, source):
    monkeypatch.setattr("promptvit.methods.spt.TOKENS_PER_CENTRE", 8)
    kept = []
    for images in (10, 40):
        samples = DatasetSamples(TensorDataset(torch.randn(images, 3, 16, 16), torch.arange(images)))
        method = SPT(length=4, source=source)
        collectors = method.collectors(vit, samples, method.chosen(samples), 3)
        for collector in collectors:
            collector.add(torch.zeros(images, PATCHES, 24), range(images))
        kept.append([tuple((c.rows if hasattr(c, "rows") else c.total).shape) for c in collectors])
    assert kept[0] == kept[1]


def test_shallow_prompts_need_no_block(vit, data):
    calls = []
    hook = vit.model.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    qkv = vit.model.blocks[0].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    started(vit, SPT(length=2, depth="shallow"), data)
    hook.remove()
    qkv.remove()
    assert not calls


def test_a_convnet_has_no_tokens(make_small):
    sizes = {"depths": (1, 1, 1, 1), "dims": (6, 8, 10, 12), "output_stride": 8}
    backbone = pv.from_timm(make_small(lambda: ConvNeXt(**sizes, num_classes=0)))
    with pytest.raises(ConfigError, match="prompts need tokens to join"):
        pv.tune(backbone, SPT(), CLASSES, samples=[(torch.zeros(3, 16, 16), 0)])
