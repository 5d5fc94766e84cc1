"""Scores against masks and biases that are written out here, in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks import pruning_case
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from torch.utils.data import TensorDataset

import promptvit as pv
from promptvit.backbones.base import BlockInput
from promptvit.errors import ConfigError, DataError
from promptvit.methods.e2vpt import E2VPT, KeyValue
from promptvit.methods.linear import Linear
from promptvit.methods.masks import Masks, segment_of
from promptvit.methods.samples import DatasetSamples
from promptvit.methods.spt import SPT
from promptvit.pruning.scores import MEASURES, Scores, check_prunable, gradients, prune, score_prompts, visual_prompts

IMAGES, CLASSES, P, S = 6, 3, 4, 4
KV = KeyValue(length=2)


def make_eva():
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return Eva(**size, num_reg_tokens=2, global_pool="token", use_rot_pos_emb=True, qkv_fused=False, init_values=0.1)


def make_swin():
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "num_classes": 0}
    return SwinTransformer(**size, depths=(2, 1), num_heads=(2, 4), window_size=2, drop_path_rate=0)


@pytest.fixture
def build(make_vit, make_small):
    """A small model in eval mode, with all that is trained away from zero."""

    def make(name, method):
        kinds = {"vit": make_vit, "eva": lambda: make_small(make_eva), "swin": lambda: make_small(make_swin)}
        backbone = pv.from_timm(kinds[name]())
        torch.manual_seed(2)
        model = pv.tune(backbone, method, CLASSES, samples=dataset()).double().eval()
        with torch.no_grad():
            for parameter in [*model.delta.parameters(), *model.head.parameters()]:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        return model

    return make


def dataset():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64, generator=generator)
    return TensorDataset(images, torch.arange(IMAGES) % CLASSES)


@pytest.fixture
def data():
    return dataset()


@pytest.fixture
def vit(build):
    return build("vit", pv.VPT(length=P))


MODELS = {
    "deep": ("vit", pv.VPT(length=P)),
    "shallow": ("vit", pv.VPT(length=P, depth="shallow")),
    "two blocks": ("vit", pv.VPT(length=P, blocks=2)),
    "two blocks, then none": ("vit", pv.VPT(length=P, blocks=2, after="drop")),
    "last block": ("vit", pv.VPT(length=P, blocks=1, end="last")),
    "shared": ("vit", pv.VPT(length=P, shared=True)),
    "projected": ("vit", pv.VPT(length=P, project=5)),
    "pooled": ("vit", pv.VPT(length=P, pooling="all")),
    "key-value": ("vit", E2VPT(prompts=pv.VPT(length=P), kv=KV)),
    "key-value, shallow": ("vit", E2VPT(prompts=pv.VPT(length=P, depth="shallow"), kv=KV)),
    "tokens": ("vit", SPT(length=P)),
    "eva": ("eva", pv.VPT(length=P)),
    "swin": ("swin", pv.VPT(length=P)),
    "swin, shallow": ("swin", pv.VPT(length=P, depth="shallow")),
    "swin, key-value": ("swin", E2VPT(prompts=pv.VPT(length=P), kv=KV)),
}


@pytest.fixture(params=MODELS)
def model(request, build):
    return build(*MODELS[request.param])


def close(got, expected, atol=1e-10):
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), rtol=0, atol=atol)


# --- the same, literally -------------------------------------------------------------------------------------------


def blocks_with_prompts(model):
    """Their numbers."""
    given = model.delta(model.backbone, 1)
    return [i for i, each in enumerate(given) if each.tokens is not None and len(each.tokens)]


def sets_of(model):
    """How many sets of prompts there are."""
    return sum(len(stage) for stage in visual_prompts(model).prompts)


def of_sets(model, gradient):
    """From one per block to one per set of prompts."""
    return gradient.sum(dim=0, keepdim=True) if sets_of(model) < len(gradient) else gradient


def loss_of(model, inputs, images, labels):
    """The sum over images."""
    features = model.backbone(images, inputs, model.method.readout)
    return F.cross_entropy(model.head(model.delta.on_features(features, images)), labels, reduction="sum")


def masked(model, m, s, layout):
    """What each block gets: prompts times masks `m` [L, P] and `s` [L, P, S]."""
    inputs = list(model.delta(model.backbone, 1))
    for number, block in enumerate(blocks_with_prompts(model)):
        tokens = inputs[block].tokens
        segment = torch.from_numpy(segment_of(tokens.shape[1], s.shape[2], layout))
        values = tokens * s[number][:, segment] * m[number][:, None]
        inputs[block] = dataclasses.replace(inputs[block], tokens=values)
    return inputs


def mask_gradients(model, images, labels, layout):
    """By masks of one: [L, P], and [L, P, S]."""
    count = len(blocks_with_prompts(model))
    m, s = (torch.ones(count, P, *more, dtype=torch.float64, requires_grad=True) for more in ((), (S,)))
    return torch.autograd.grad(loss_of(model, masked(model, m, s, layout), images, labels), [m, s])


def weighted(model, bias):
    """What each block gets: prompts that nobody reads as keys, with `bias` [L, P] on the logits; others as they are."""
    inputs = list(model.delta(model.backbone, 1))
    for number, block in enumerate(blocks_with_prompts(model)):
        given = inputs[block]
        if model.backbone.travels(block, inputs, model.method.readout):
            continue
        folded = model.backbone.fold_block(block, BlockInput(tokens=given.tokens))
        keys, values, logits = [folded.keys], [folded.values], [bias[number]]
        if given.keys is not None:
            keys, values = [*keys, given.keys], [*values, given.values]
            logits.append(bias.new_zeros(given.keys.shape[-2]))
        inputs[block] = BlockInput(
            tokens=given.tokens[:0],
            keys=torch.cat(keys, dim=-2),
            values=torch.cat(values, dim=-2),
            bias=torch.cat(logits),
        )
    return inputs


def each_image(data):
    """Images and labels, one by one."""
    return [(image[None], label[None]) for image, label in zip(*data.tensors, strict=True)]


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
def test_gradients_are_those_of_masks_on_the_values(model, data, layout):
    got = gradients(model, *data.tensors, gate="values", layout=layout, parts=S)
    assert got.shape == (IMAGES, sets_of(model), P, 1 + S)
    for number, (image, label) in enumerate(each_image(data)):
        tokens, segments = mask_gradients(model, image, label, layout)
        close(got[number, ..., 0], of_sets(model, tokens))
        close(got[number, ..., 1:], of_sets(model, segments))
    close(got[..., 1:].sum(dim=-1), got[..., 0])
    assert got.abs().amax() > 1e-4


def test_gradients_are_those_of_a_bias_on_the_attention(model, data):
    """exp(logit) times g is a bias of log g, whose derivative at one is that of g. Prompts that travel keep masks."""
    got = gradients(model, *data.tensors, gate="attention", layout="contiguous", parts=S)
    by_values = gradients(model, *data.tensors, gate="values", layout="contiguous", parts=S)
    close(got[..., 1:], by_values[..., 1:])
    inputs = model.delta(model.backbone, 1)
    travelling = [model.backbone.travels(i, inputs, model.method.readout) for i in blocks_with_prompts(model)]
    for number, (image, label) in enumerate(each_image(data)):
        bias = torch.zeros(len(travelling), P, dtype=torch.float64, requires_grad=True)
        loss = loss_of(model, weighted(model, bias), image, label)
        close(loss, F.cross_entropy(model(image), label))
        slope = torch.zeros_like(bias)
        if not all(travelling):
            (slope,) = torch.autograd.grad(loss, bias)
        slope = of_sets(model, slope)
        for place in range(sets_of(model)):
            close(got[number, place, :, 0], by_values[number, place, :, 0] if travelling[place] else slope[place])


@pytest.mark.parametrize("gate", ["values", "attention"])
@pytest.mark.parametrize("name", ["deep", "key-value", "eva", "swin", "shallow"])
def test_gradients_are_the_slope_towards_removal(name, gate, build, data):
    """(loss with the gate at 1-e, less the loss) / e, from both sides."""
    model, e = build(*MODELS[name]), 1e-5
    got = gradients(model, *data.tensors, gate=gate, layout="contiguous", parts=S).sum(dim=0)[..., 0]  # [L, P]

    def loss(gates):
        if gate == "values" or name == "shallow":
            ones = torch.ones(*gates.shape, S, dtype=torch.float64)
            return loss_of(model, masked(model, gates, ones, "contiguous"), *data.tensors)
        return loss_of(model, weighted(model, gates.log()), *data.tensors)

    with torch.no_grad():
        for place in np.ndindex(*got.shape):
            less, more = (torch.ones_like(got) for _ in range(2))
            less[place], more[place] = 1 - e, 1 + e
            close((loss(more) - loss(less)) / (2 * e), got[place], atol=1e-7)


def test_a_gate_of_zero_is_no_prompt(vit, data):
    gates = torch.ones(3, P, dtype=torch.float64)
    gates[:, 1] = 0
    without = prune(vit, Masks(length=P, tokens=[[1]]))
    close(
        loss_of(vit, weighted(vit, gates.log()), *data.tensors),
        F.cross_entropy(without(data.tensors[0]), data.tensors[1], reduction="sum"),
    )


def test_a_trained_mask_with_weight_decay_says_nothing_of_use(vit, data):
    """The official code scores masks that it has trained: where training ends, the gradient is -decay · mask."""
    decay, m = 0.1, torch.ones(P, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(3, P, S, dtype=torch.float64)

    def loss():
        return loss_of(vit, masked(vit, m.expand(3, P), ones, "contiguous"), *data.tensors) / IMAGES

    optimizer = torch.optim.LBFGS(
        [m], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = loss() + decay / 2 * m.square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    (gradient,) = torch.autograd.grad(loss(), m)
    close(gradient, -decay * m.detach(), atol=1e-6)


def test_a_norm_undoes_the_scale_of_a_prompt(vit, data):
    """So a mask on the values of prompts that nobody else reads has no gradient but for the norm's epsilon."""
    values, attention = (score_prompts(vit, data, gate=gate, parts=S).tokens for gate in ("values", "attention"))
    assert values.max() < 1e-3 * attention.min()


@pytest.mark.parametrize("name", ["deep", "shallow", "shared", "key-value", "swin"])
def test_a_mask_has_the_gradient_of_its_prompt_along_itself(name, build, data):
    """m_i dL/dm_i = sum over blocks of <p_i, dL/dp_i>."""
    model = build(*MODELS[name])
    prompts = visual_prompts(model).prompts
    slopes = torch.autograd.grad(F.cross_entropy(model(data.tensors[0]), data.tensors[1]), list(prompts))
    along = sum((p * slope).sum(dim=(0, 2)) for p, slope in zip(prompts, slopes, strict=True))
    samples = DatasetSamples(data, IMAGES)
    found = score_prompts(model, samples, score="compat_signed", gate="values", scope="all", parts=S)
    close(found.tokens[0], along.detach())


# --- scores --------------------------------------------------------------------------------------------------------


def images_gradients(model, data, scope, gate="attention"):
    """[n, sets, P, 1+S]."""
    each = gradients(model, *data.tensors, gate=gate, layout="contiguous", parts=S)
    return {"all": each.sum(dim=1, keepdim=True), "block": each, "first": each[:, :1]}[scope].numpy()


@pytest.mark.parametrize("scope", ["all", "block", "first"])
@pytest.mark.parametrize("name", ["deep", "swin", "eva"])
def test_what_each_score_is(name, scope, build, data):
    model = build(*MODELS[name])
    each = images_gradients(model, data, scope)
    expected = {
        "absolute": np.abs(each).mean(axis=0),
        "squared": (each**2).mean(axis=0),
        "taylor": -each.mean(axis=0),
        "compat_signed": np.mean([each[:4].mean(axis=0), each[4:].mean(axis=0)], axis=0),
    }
    assert expected.keys() == MEASURES.keys()
    for score, values in expected.items():
        found = score_prompts(model, DatasetSamples(data, 4), score=score, scope=scope, parts=S)
        close(found.tokens, values[..., 0])
        close(found.segments, values[..., 1:])
        assert found.tokens.shape == ({"all": 1, "block": 3, "first": 1}[scope], P)


def test_signed_scores_of_blocks_sum_to_those_of_all(model, data):
    for score in ("taylor", "compat_signed"):
        of_all, of_each = (
            score_prompts(model, DatasetSamples(data, 4), score=score, scope=scope, parts=S)
            for scope in ("all", "block")
        )
        close(of_each.tokens.sum(axis=0), of_all.tokens[0])
        close(of_each.segments.sum(axis=0), of_all.segments[0])


@pytest.mark.parametrize("gate", ["values", "attention"])
def test_absolute_scores_are_at_least_the_signed_ones(vit, data, gate):
    samples = DatasetSamples(data, 3)
    absolute, signed = (
        score_prompts(vit, samples, score=score, gate=gate, parts=S) for score in ("absolute", "taylor")
    )
    assert (absolute.tokens >= np.abs(signed.tokens) - 1e-12).all()
    assert (absolute.segments >= np.abs(signed.segments) - 1e-12).all()
    assert (absolute.tokens > 1.01 * np.abs(signed.tokens)).any()  # images differ
    if gate == "values":
        assert (absolute.tokens <= absolute.segments.sum(axis=2) + 1e-12).all()


@pytest.mark.parametrize("score", ["absolute", "squared", "taylor"])
def test_batches_and_order_do_not_matter(vit, data, score):
    expected = score_prompts(vit, DatasetSamples(data, 64), score=score, parts=S)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    shuffled = TensorDataset(*(part[order] for part in data.tensors))
    for samples in (DatasetSamples(data, 1), DatasetSamples(data, 4), DatasetSamples(shuffled, 5), data):
        found = score_prompts(vit, samples, score=score, parts=S)
        close(found.tokens, expected.tokens, 1e-12)
        close(found.segments, expected.segments, 1e-12)


@pytest.mark.parametrize("batch", [2, 3, 6])
def test_compat_scores_of_equal_batches_are_the_gradient_of_the_mean_loss(vit, data, batch):
    tokens, segments = mask_gradients(vit, *data.tensors, "interleaved")
    fields = {"score": "compat_signed", "gate": "values", "scope": "block", "layout": "interleaved"}
    found = score_prompts(vit, DatasetSamples(data, batch), **fields, parts=S)
    close(found.tokens, tokens / IMAGES)
    close(found.segments, segments / IMAGES)


def test_compat_scores_weigh_the_last_batch_like_a_full_one(vit, data):
    found = score_prompts(vit, DatasetSamples(data, 5), score="compat_signed", gate="values", parts=S)
    each = images_gradients(vit, data, "block", "values")
    close(found.tokens, (each[:5].mean(axis=0) + each[5])[..., 0] / 2)


# --- of pruned models, and what is left as it was ------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["values", "attention"])
@pytest.mark.parametrize("scope", ["all", "block", "first"])
def test_what_is_pruned_has_a_score_of_zero(vit, data, scope, gate):
    tokens = {"all": [[2]], "block": [[2], [], [0, 3]], "first": [[2]]}[scope]
    segments = [[[1], [], [], [0, 3]]] * len(tokens)
    masks = Masks(length=P, parts=S, scope=scope, tokens=tokens, segments=segments)
    found = score_prompts(prune(vit, masks), data, scope="block", gate=gate, parts=S)
    kept, parts = masks.kept_tokens(3), masks.kept_segments(3)
    assert ((found.tokens > 0) == kept).all()
    assert ((found.segments > 0) == parts).all()
    zeroed = prune(vit, dataclasses.replace(masks, compat_zero=True))
    of_rows = score_prompts(zeroed, data, scope="block", gate=gate, parts=S)
    assert ((of_rows.segments > 0) == parts).all()
    if gate == "values":  # a row of zeros still draws attention
        assert ((of_rows.tokens > 0) == kept).all()


@pytest.mark.parametrize("scope", ["all", "block", "first"])
def test_shared_prompts_are_one_set_whatever_the_scope(build, data, scope):
    model = build(*MODELS["shared"])
    scores = score_prompts(model, data, scope=scope, parts=S)
    expected = score_prompts(model, data, scope="all", parts=S)
    close(scores.tokens, expected.tokens, 0)
    close(scores.segments, expected.segments, 0)
    masks = scores.masks(1, 1)
    pruned = prune(model, masks)
    assert torch.equal(pruned(data.tensors[0]), prune(model, expected.masks(1, 1))(data.tensors[0]))
    again = score_prompts(pruned, data, scope=scope, parts=S)
    assert ((again.tokens > 0) == masks.kept_tokens(1)).all()
    assert ((again.segments > 0) == masks.kept_segments(1)).all()


def test_scores_of_what_is_left_are_those_of_a_model_without_the_rest(vit, data):
    masks = Masks(length=P, tokens=[[1]])
    found = score_prompts(prune(vit, masks), data, parts=S)
    smaller = pv.tune(vit.backbone, pv.VPT(length=P - 1), CLASSES).double().eval()
    with torch.no_grad():
        smaller.delta.prompts[0].copy_(vit.delta.prompts[0][:, [0, 2, 3]])
    smaller.head.load_state_dict(vit.head.state_dict())
    alone = score_prompts(smaller, data, parts=S)
    close(found.tokens[:, [0, 2, 3]], alone.tokens)
    close(found.segments[:, [0, 2, 3]], alone.segments)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["deep", "key-value"])
def test_nothing_changes_in_the_model(name, training, build, data):
    model = build(*MODELS[name]).train(training)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    score_prompts(model, data, parts=S)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_mode_is_as_before_after_an_error_too(vit, data):
    vit.train()
    with pytest.raises(ConfigError):
        score_prompts(vit, data, parts=5)
    assert vit.training


def test_it_works_where_gradients_are_off(vit, data):
    expected = score_prompts(vit, data, parts=S)
    with torch.no_grad():
        close(score_prompts(vit, data, parts=S).tokens, expected.tokens, 0)


@pytest.mark.parametrize("visual", [pv.VPT(length=P, dropout=0.5), SPT(length=P, dropout=0.5)], ids=["vpt", "spt"])
def test_dropout_is_off(visual, build, data):
    model = build("vit", E2VPT(prompts=visual, kv=KeyValue(length=2, dropout=0.5))).train()
    one, other = (score_prompts(model, data, parts=S) for _ in range(2))
    close(one.tokens, other.tokens, 0)
    plain = build("vit", E2VPT(prompts=dataclasses.replace(visual, dropout=0.0), kv=KV))
    close(score_prompts(plain, data, parts=S).tokens, one.tokens, 0)


def test_activation_checkpointing_changes_no_score(vit, data):
    expected = score_prompts(vit, data, parts=S)
    vit.backbone.set_checkpointing(True)
    found = score_prompts(vit, data, parts=S)
    close(found.tokens, expected.tokens)
    close(found.segments, expected.segments)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_gradients_that_are_not_finite_are_refused(vit, data):
    broken = data.tensors[0].clone()
    broken[3] = math.inf
    for score in MEASURES:
        with pytest.raises(DataError, match="gradients that are NaN or infinite"):
            score_prompts(vit, TensorDataset(broken, data.tensors[1]), score=score, parts=S)


def test_a_width_that_does_not_divide_is_refused(vit, data):
    for layout in ("contiguous", "interleaved"):
        with pytest.raises(ConfigError, match="7 segments of prompts of width 24"):
            score_prompts(vit, data, layout=layout, parts=7)


def test_no_images_are_refused(vit):
    with pytest.raises(DataError, match="no training images"):
        score_prompts(vit, [])


def test_models_without_visual_prompts_are_refused(build, make_small, data):
    convnet = pv.from_timm(make_small(lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=0)))
    models = [
        build("vit", Linear()),
        build("vit", E2VPT(prompts=None, kv=KV)),
        pv.tune(convnet, Linear(), CLASSES),
    ]
    for model in models:
        with pytest.raises(
            ConfigError, match=f"the method {model.method.kind} has no visual prompts; expected vpt, spt"
        ):
            score_prompts(model, data)
        with pytest.raises(ConfigError, match="has no visual prompts"):
            check_prunable(model)


def test_what_cannot_be_pruned(vit, build):
    pruned = prune(vit, Masks(length=P, tokens=[[0]]))
    with pytest.raises(ConfigError, match="it is pruned already; prune the run that it comes from"):
        prune(pruned, Masks(length=P))
    with pytest.raises(ConfigError, match="it trains weights of the backbone"):
        check_prunable(build("vit", pv.VPT(length=P, weights="bias")))
    with pytest.raises(ConfigError, match="masks of 5 prompts for 4: they belong to another run"):
        prune(vit, Masks(length=5))
    with pytest.raises(ConfigError, match="segments of projected prompts"):
        prune(build(*MODELS["projected"]), Masks(length=P, tokens=[[0]], segments=[[[], [0], [], []]]))


# --- from scores to masks ------------------------------------------------------------------------------------------


def scores_of(tokens, segments=None, **fields):
    tokens = np.array(tokens, dtype=np.float64)
    if segments is None:
        segments = np.zeros((*tokens.shape, S))
    return Scores(tokens=tokens, segments=np.array(segments, dtype=np.float64), **{"scope": "all"} | fields)


def test_the_least_important_go_first_and_of_equal_ones_the_lower_index():
    scores = scores_of([[3, 1, 2, 1]], [[[1, 1, 0, 1], [0, 0, 0, 0], [4, 3, 2, 1], [0, -1, 0, 0]]])
    masks = scores.masks(1, 2)
    assert masks.tokens == ((1,),)
    assert masks.segments == (((0, 2), (), (2, 3), (0, 1)),)
    assert scores.masks(2, 0).tokens == ((1, 3),)
    assert scores.masks(0, 0) == Masks(length=P, parts=S, segments=[[()] * P])
    assert not scores.masks(0, 0).prunes_segments
    assert scores.masks(3).tokens == ((1, 2, 3),)


def test_masks_say_all_that_the_scores_know():
    fields = {"scope": "block", "layout": "interleaved"}
    masks = scores_of([[2, 1], [1, 2], [0, 0]], **fields).masks(1, compat_zero=True)
    assert (masks.length, masks.parts, masks.scope, masks.layout) == (2, S, "block", "interleaved")
    assert masks.compat_zero
    assert masks.tokens == ((1,), (0,), (0,))


def test_sets_are_nested_in_the_count():
    generator = np.random.default_rng(0)
    scores = scores_of(generator.integers(0, 4, (2, 9)), generator.integers(0, 4, (2, 9, S)), scope="block")
    for count in range(8):
        fewer, more = scores.masks(count, 1), scores.masks(count + 1, 2)
        for one, other in zip(fewer.tokens, more.tokens, strict=True):
            assert set(one) < set(other)
            assert len(other) == count + 1
        for number, gone in enumerate(more.tokens):
            for prompt in set(range(9)) - set(gone):
                assert set(fewer.segments[number][prompt]) < set(more.segments[number][prompt])


@pytest.mark.parametrize(("tokens", "segments"), [(4, 0), (0, S), (-1, 0), (0, -1)])
def test_something_is_left(tokens, segments):
    with pytest.raises(ConfigError, match=f"{tokens} of 4 prompts and {segments} of 4 segments pruned"):
        scores_of([[3, 1, 2, 1]]).masks(tokens, segments)


# --- a pruned model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep", "shallow", "pooled", "tokens", "key-value", "swin", "eva"])
def test_a_pruned_model_keeps_all_other_values(name, build, data):
    model = build(*MODELS[name]).train()
    model.preprocessing = dataclasses.replace(model.preprocessing, mean=(0.1, 0.2, 0.3))
    masks = score_prompts(model, data, parts=S).masks(1, 2)
    pruned = prune(model, masks)
    assert pruned.training
    assert pruned.preprocessing == model.preprocessing
    assert pruned.backbone is model.backbone
    assert pruned.method.masks == masks
    kept = masks.kept_segments(sets_of(model))
    m = torch.from_numpy(kept.any(axis=2))
    inputs = masked(model.eval(), m.double(), torch.from_numpy(kept).double(), "contiguous")
    for rows, number in zip(m, blocks_with_prompts(model), strict=True):  # zeros are not absent: the pruned row goes
        inputs[number] = dataclasses.replace(inputs[number], tokens=inputs[number].tokens[rows])
    features = model.backbone(data.tensors[0], inputs, model.method.readout)
    close(pruned.eval()(data.tensors[0]), model.head(features), 1e-12)
    close(pruned.fold()(data.tensors[0]), model.head(features))


def test_pruning_nothing_changes_no_bit(model, data):
    pruned = prune(model, Masks(length=P))
    assert torch.equal(pruned(data.tensors[0]), model(data.tensors[0]))
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in model.parameters())


# --- what scores can tell ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def constructed():
    """A model whose prompts are useful, idle or harmful by design, and what removing each does: per data set, the
    measured effect, the scores, and the orders of removal."""
    model, cases = pruning_case.make_model(), {}
    for share in (pruning_case.FEW, pruning_case.MANY):
        data = pruning_case.make_data(share)
        found = {score: score_prompts(model, data, score=score, parts=8) for score in MEASURES}
        orders = {score: pruning_case.order(scores) for score, scores in found.items()}
        cases[share] = pruning_case.worth(model, data), found, orders
    return cases


def parts_of(order):
    return "".join(pruning_case.RULES[number].role[0] for number in order)


def test_the_case_is_what_it_says(constructed):
    """Removing a useful prompt raises the loss, removing a harmful one lowers it, removing an idle one does neither."""
    for effects, _, _ in constructed.values():
        for rule, effect in zip(pruning_case.RULES, effects, strict=True):
            sign = {"useful": 1, "harmful": -1, "idle": 0}[rule.role]
            assert abs(effect) < 5e-4 if sign == 0 else sign * effect > 8e-3


def test_default_scores_remove_the_useful_last_where_others_matter_less(constructed):
    """`absolute` is how much a prompt matters to images one by one. The idle ones matter to none, and these harmful
    ones to few: both go before any useful one. The official signed score takes every useful one first."""
    _, _, orders = constructed[pruning_case.FEW]
    assert parts_of(orders["absolute"]) == "iihhhuuu"
    assert parts_of(orders["compat_signed"]) == "uuuiihhh"


def test_default_scores_cannot_tell_harm_from_use(constructed):
    """What hurts many images matters, and is kept by `absolute` and `squared`; `taylor`, which has a sign, removes it
    first. `compat_signed` is wrong once more."""
    _, _, orders = constructed[pruning_case.MANY]
    assert parts_of(orders["absolute"]) == parts_of(orders["squared"]) == "iiuuuhhh"
    assert parts_of(orders["compat_signed"]) == "uuuiihhh"


def test_taylor_scores_have_the_sign_of_the_true_effect(constructed):
    for effects, found, orders in constructed.values():
        clear = np.abs(effects) > 1e-3
        assert (np.sign(found["taylor"].tokens[0]) == np.sign(effects))[clear].all()
        assert parts_of(orders["taylor"]) == parts_of(np.argsort(effects)) == "hhhiiuuu"
        assert orders["compat_signed"][:3] == orders["taylor"][::-1][:3]


def test_helping_and_hurting_alike_looks_idle_to_a_mean_alone(vit, data):
    """The same image with two labels: to `taylor` the prompts of a model that knows neither hardly matter."""
    with torch.no_grad():
        vit.head.weight[1] = -vit.head.weight[0]
        vit.head.weight[2] = 0
        vit.head.bias.copy_(torch.tensor([0.0, 0.0, -99.0]))
        image = data.tensors[0][:1]
        vit.head.bias[1] = (vit(image)[0, 0] - vit(image)[0, 1]).item()  # both labels are as likely
    twice = TensorDataset(image.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    absolute, taylor = (score_prompts(vit, twice, score=score, parts=S).tokens for score in ("absolute", "taylor"))
    assert np.abs(taylor).max() < 1e-9
    assert absolute.min() > 1e-6
