"""A model with other sharing or another depth: shallow to deep, unshared to shared, and back.

A model is written out as the weights that each of its layers really uses; those are put together
again under the new strategy. Sources: growing by repeating the whole stack, Gong et al. 2019,
"Efficient Training of BERT by Progressively Stacking"; every other layer for a shallower model, as
DistilBERT, arXiv 1910.01108; mean and truncated SVD of the layers that share, Bae et al. 2024,
arXiv 2410.20672, section 2.2.
"""

import dataclasses

import numpy as np

from albert.checkpoints import CheckpointError
from albert.interop.weights import Weights, layer_path, parameter_shapes, without_exits
from albert.models.config import AlbertConfig
from albert.models.sharing import LOW_RANK

# How layers that share are made of those that did not.
INIT_METHODS = ("average", "svd")
# What the layers of a model are made of, beside sizes.
STRUCTURE = ("sharing", "per_layer_norm", "lora_rank", "num_hidden_layers", "inner_group_num")
# Root of a singular value over that of the kernel's norm, from which on a difference is rounding.
_NO_DIFFERENCE = 1e-3


def same_tensors(a: AlbertConfig, b: AlbertConfig) -> bool:
    """Whether two models of the same sizes consist of the same tensors."""
    return parameter_shapes(a) == parameter_shapes(b) and all(
        getattr(a, name) == getattr(b, name) for name in ("sharing", "per_layer_norm", "lora_rank")
    )


def reshare(weights: Weights, config: AlbertConfig, method: str = "average") -> Weights:
    """The same model under the sharing and the depth of `config`; no optimizer's moments.

    Layer l of a deeper model is layer l mod depth of the old one (the stack is repeated), of a
    shallower one layer l * depth // new depth. A tensor that several layers share is the mean of
    theirs. Where all of them were equal before, the new model is bit-equal in what it computes
    with.

    Args:
      weights: the model; its low-rank differences are added to the kernels.
      config: its sizes other than the fields of STRUCTURE are those of `weights`.
      method: "average" leaves low-rank differences out, to begin as zero; "svd" makes them the best
        approximation, in the sum of squares, of what each kernel differs from the mean by, and
        zero as a new model's are where it does not.

    Raises:
      ValueError: there is no such method.
    """
    if method not in INIT_METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(INIT_METHODS)}")
    if "exits" in weights.heads and config.depth != weights.config.depth:
        # What a classifier learned of one depth says nothing of another.
        weights = without_exits(weights)
        left = "the classifiers of the depths before the last are left out"
        weights = dataclasses.replace(weights, notes=[*weights.notes, left])
    rng = np.random.default_rng(0)
    old = weights.config
    layers = [_layer(weights, d) for d in _sources(old.depth, config.depth)]
    params = {p: v for p, v in weights.params.items() if not p.startswith("encoder/group_")}
    for leaf in layers[0]:
        sets = config.leaf_sets(leaf)
        for entry in range(max(sets) + 1):
            of = [layer[leaf] for layer, s in zip(layers, sets, strict=True) if s == entry]
            # Sums in float64 are exact here, so that the mean of equal tensors is that tensor.
            mean = np.stack(of).mean(axis=0, dtype=np.float64)
            params[layer_path(config, entry, leaf)] = np.asarray(mean, np.float32)
        module, _, name = leaf.rpartition("/")
        rank = config.low_rank(module.startswith("attention")) if name == "kernel" else 0
        if rank and method == "svd":
            split = 2 if leaf == "attention/output/kernel" else 1
            for depth, layer in enumerate(layers):
                shared = params[layer_path(config, sets[depth], leaf)]
                factors = _low_rank(layer[leaf] - shared, rank, split)
                # Where there is no difference both factors would be zero, and stay it: the gradient
                # of each is a product with the other. They begin as a new model's do.
                new = np.linalg.norm(factors[0].reshape(-1, rank), axis=0) <= (
                    _NO_DIFFERENCE * np.sqrt(np.linalg.norm(shared))
                )
                factors[0][..., new] = rng.normal(
                    0, config.initializer_range, (*factors[0].shape[:-1], new.sum())
                )
                factors[1][new] = 0
                for factor, value in zip(LOW_RANK, factors, strict=True):
                    params[layer_path(config, depth, f"{module}/{factor}")] = value
    structure = {name: getattr(config, name) for name in STRUCTURE}
    changed = [
        f"{k} {getattr(old, k)} -> {v}" for k, v in structure.items() if getattr(old, k) != v
    ]
    note = f"layers put together anew by {method}: {', '.join(changed)}"
    return dataclasses.replace(
        weights,
        config=dataclasses.replace(old, **structure),
        params=params,
        mu=None,
        nu=None,
        names={},
        notes=[*weights.notes, note],
    )


def first_layers(weights: Weights, depth: int) -> Weights:
    """The model that ends behind its first `depth` layers, which stay as they are; no optimizer's
    moments. What a model is good for that was trained with `least_depth`.

    Raises CheckpointError: it has no such depth, or no strategy of sharing says which of these
    layers share.
    """
    old = weights.config
    if depth == old.depth:
        return weights
    if not 1 <= depth < old.depth or depth % old.inner_group_num:
        of = f", a multiple of {old.inner_group_num}," if old.inner_group_num > 1 else ""
        raise CheckpointError(
            f"depth is {depth}; the model can end behind 1 to {old.depth}{of} layers."
        )
    config = dataclasses.replace(
        old,
        num_hidden_layers=depth // old.inner_group_num,
        least_depth=0,
        scan_unroll=min(old.scan_unroll, depth),
    )
    names = {path.split("/", 3)[3] for path in weights.params if path.startswith("encoder/group_")}
    ranks = (True, False)
    if (
        config.problems()
        or any(config.leaf_sets(leaf) != old.leaf_sets(leaf)[:depth] for leaf in names)
        or [*map(config.low_rank, ranks)] != [*map(old.low_rank, ranks)]
    ):
        raise CheckpointError(
            f"Of sharing {old.sharing!r} over {old.depth} layers the first {depth} are no model of "
            "that strategy. Sharing all, none, attention and ffn can be cut anywhere."
        )
    params = {p: v for p, v in weights.params.items() if not p.startswith("encoder/group_")}
    for leaf in names:
        for entry in range(max(config.leaf_sets(leaf)) + 1):
            params[layer_path(config, entry, leaf)] = weights.params[layer_path(old, entry, leaf)]
    note = f"ends behind {depth} of its {old.depth} layers"
    cut = dataclasses.replace(
        weights,
        config=config,
        params=params,
        mu=None,
        nu=None,
        names={},
        notes=[*weights.notes, note],
    )
    return without_exits(cut) if "exits" in weights.heads else cut


def _sources(old: int, new: int) -> list[int]:
    return [d % old if new >= old else d * old // new for d in range(new)]


def _layer(weights: Weights, depth: int) -> dict[str, np.ndarray]:
    """Every tensor of the layer at one depth as it is applied, by its path below the layer."""
    config = weights.config
    names = {path.split("/", 3)[3] for path in weights.params if path.startswith("encoder/group_")}
    own = {
        name: weights.params[layer_path(config, config.leaf_sets(name)[depth], name)]
        for name in sorted(names)
    }
    merged = {}
    for name, value in own.items():
        module, _, last = name.rpartition("/")
        if last in LOW_RANK:
            continue
        if last == "kernel" and f"{module}/lora_a" in own:
            a, b = (own[f"{module}/{factor}"] for factor in LOW_RANK)
            value = value + np.tensordot(a, b, axes=1)
        merged[name] = value
    return merged


def _low_rank(difference: np.ndarray, rank: int, contracted: int):
    """Factors [contracted axes, R] and [R, the other axes] of a kernel's difference."""
    shape = difference.shape
    rows = int(np.prod(shape[:contracted]))
    u, s, v = np.linalg.svd(difference.reshape(rows, -1).astype(np.float64), full_matrices=False)
    scale = np.sqrt(s[:rank])
    a = (u[:, :rank] * scale).reshape(*shape[:contracted], rank)
    b = (scale[:, None] * v[:rank]).reshape(rank, *shape[contracted:])
    return a.astype(np.float32), b.astype(np.float32)
