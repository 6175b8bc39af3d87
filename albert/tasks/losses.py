"""The two pretraining losses, as sums and counts so that any split of a batch adds up.

Source: section "Loss" of the released program. Log-softmax and reductions are float32.
"""

import jax
import jax.numpy as jnp

MLM_EPSILON = 1e-5  # added to the sum of weights, as released


def masked_lm_terms(logits, labels, weights):
    """Negative log likelihood and hit of every masked position.

    Args:
      logits: float32 [B, P, V].
      labels: int [B, P].
      weights: float32 [B, P], 1 for a masked position and 0 for filling.

    Returns:
      (nll, hit): float32 [B, P] each, 0 where the weight is 0.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    hit = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return nll * weights, hit * weights


def sentence_order_terms(logits, labels):
    """Cross entropy, hit and weight of every example. Label 0 in order, 1 swapped, -1 no label.

    float32 [..., 2], int [...] -> three of float32 [...]; [B], or [B, K] for packed rows.
    """
    weights = (labels >= 0).astype(jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.maximum(labels, 0)[..., None]
    nll = -jnp.take_along_axis(log_probabilities, chosen, axis=-1)[..., 0]
    hit = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return nll * weights, hit * weights, weights


def pretraining_loss(output, batch, mlm_weight, sop_weight):
    """The share of the loss that these rows contribute, and what to report of them.

    MLM = sum(w * nll) / (sum(w) + 1e-5); SOP = mean cross entropy; the loss is their sum.
    The denominators are those of the whole batch, so the shares of its parts add up to it.

    Args:
      output: AlbertOutput of the rows.
      batch: the rows; see `albert.data.pretraining.examples` for the fields.
      mlm_weight: float32 scalar, sum(w) over the whole batch.
      sop_weight: float32 scalar, number of labelled examples in the whole batch.

    Returns:
      (loss, metrics): a scalar and a dict of scalars, additive over the parts of a batch.
    """
    mlm_nll, mlm_hit = masked_lm_terms(output.mlm_logits, batch["mlm_labels"], batch["mlm_weights"])
    sop_nll, sop_hit, _ = sentence_order_terms(output.sop_logits, batch["sop_labels"])
    mlm_scale = 1.0 / (mlm_weight + MLM_EPSILON)
    sop_scale = 1.0 / jnp.maximum(sop_weight, 1.0)  # a batch without labels gives 0, not 0/0
    metrics = {
        "mlm_loss": mlm_nll.sum() * mlm_scale,
        "mlm_accuracy": mlm_hit.sum() * mlm_scale,
        "sop_loss": sop_nll.sum() * sop_scale,
        "sop_accuracy": sop_hit.sum() * sop_scale,
    }
    return metrics["mlm_loss"] + metrics["sop_loss"], metrics
