"""The arithmetic of DreamerV3: squashing, two-hot, categoricals with unimix, lambda-returns, the return scale.

Axes: K classes, I bins, T time (leading). "..." are any leading axes.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from stages.kernels import exact, exponentials, softmax

sg = lax.stop_gradient


def symlog(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sign(x) log(1 + |x|) (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sign(x) (exp(|x|) - 1), the inverse of symlog (DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


# ---- two-hot -------------------------------------------------------------------------------------------------------


def symexp_bins(count: int) -> np.ndarray:
    """Bins [I] at symexp of `count` even points in -20 ... 20, exactly symmetric (DreamerV3, eq. 10). count is odd."""
    half = np.linspace(-20, 0, (count - 1) // 2 + 1, dtype=np.float32)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[:-1][::-1]])


def two_hot(target: Float[Array, "..."], bins: np.ndarray) -> Float[Array, "... I"]:
    """Weights on the two bins around `target`, linear between them, clipped to the outermost (DreamerV3, eq. 11).

    Each bin's weight is a hat function, so that nothing is gathered and XLA fuses it into the loss that reads it.
    """
    gaps = np.diff(bins)
    below, above = np.append(1.0, gaps), np.append(gaps, 1.0)
    away = jnp.clip(target, bins[0], bins[-1])[..., None] - bins
    rising = 1 + away / below.astype(np.float32)
    falling = 1 - away / above.astype(np.float32)
    return jnp.maximum(0.0, jnp.minimum(rising, falling))


def two_hot_mean(logits: Float[Array, "... I"], bins: np.ndarray) -> Float[Array, "..."]:
    """Expected bin. The halves are subtracted from each other, so that uniform logits give exactly 0."""
    powers, total, _ = exponentials(logits)
    half = (len(bins) - 1) // 2
    low, high = powers[..., :half][..., ::-1], powers[..., half + 1 :]
    # A product and no sum of products: on a CPU, XLA takes 3 times as long for the latter.
    return exact(high - low, bins[half + 1 :]) / total[..., 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def two_hot_loss(
    logits: Float[Array, "... I"], targets: Float[Array, "n ..."], weights: Float[Array, " n"], count: int
) -> Float[Array, "..."]:
    """sum_n weights[n] * cross_entropy(logits, two_hot(targets[n], symexp_bins(count))), nats.

    The same numbers as that sum without its vectors: a target has weight on two bins, so two logits are read.
    Sends gradient to the logits only.
    """
    return _two_hot_loss(logits, targets, weights, count)[0]


def _two_hot_loss(logits, targets, weights, count):
    bins = symexp_bins(count)
    # Bins are even in symlog. Where rounding names the bin beside the right one, the clipped share still is right.
    index = jnp.floor((symlog(targets) + 20) * ((count - 1) / 40))
    index = jnp.clip(index, 0, count - 2).astype(jnp.int32)
    share = jnp.clip((targets - jnp.asarray(bins)[index]) / jnp.asarray(np.diff(bins))[index], 0, 1)
    read = lambda i: jnp.take_along_axis(logits[None], i[..., None], -1)[..., 0]
    matched = (1 - share) * read(index) + share * read(index + 1)
    powers, total, top = exponentials(logits)
    loss = jnp.tensordot(weights, (jnp.log(total) + top)[..., 0] - matched, 1)
    return loss, (powers, total, targets, weights)


def _two_hot_loss_grad(count, saved, grad):
    powers, total, targets, weights = saved
    matched = sum(weights[i] * two_hot(targets[i], symexp_bins(count)) for i in range(targets.shape[0]))
    return grad[..., None] * ((weights.sum() / total) * powers - matched), None, None


two_hot_loss.defvjp(_two_hot_loss, _two_hot_loss_grad)


def cross_entropy(logits: Float[Array, "... I"], weights: Float[Array, "... I"]) -> Float[Array, "..."]:
    """-sum(weights * log softmax(logits)), nats. Weights need not sum to one: losses on two targets add up in them."""
    return -jnp.sum(weights * jax.nn.log_softmax(logits), -1)


# ---- categoricals --------------------------------------------------------------------------------------------------


class Categorical(eqx.Module):
    """Probabilities and their logarithms, computed once and shared by sampling, entropy and KL."""

    probs: Float[Array, "... K"]
    logp: Float[Array, "... K"]


def unimix(logits: Float[Array, "... K"], ratio: Float[Array, ""] | float) -> Categorical:
    """Softmax mixed with `ratio` of the uniform distribution (DreamerV3, Methods), in float32."""
    probs = softmax(logits.astype(jnp.float32))
    probs = (1 - ratio) * probs + ratio / logits.shape[-1]
    return Categorical(probs, jnp.log(probs))


def sample_index(probs: Float[Array, "... K"], uniform: Float[Array, "..."]) -> Int[Array, "..."]:
    """Class drawn with one uniform in [0, 1) each, by inverting the cumulative distribution."""
    count = probs.shape[-1]
    triangle = np.triu(np.ones((count, count), np.float32))
    cumulative = exact(probs, triangle[:, :-1])
    # The last class takes what remains, so rounding of the cumulative sum can never name a class beyond it.
    return jnp.sum(uniform[..., None] >= cumulative, -1, dtype=jnp.int32)


def straight_through(index: Int[Array, "..."], probs: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """One-hot of `index` whose gradient is that of `probs` (Bengio et al. 2013, arXiv 1308.3432)."""
    onehot = jax.nn.one_hot(index, probs.shape[-1], dtype=probs.dtype)
    return sg(onehot) + (probs - sg(probs))


def kl(p: Categorical, q: Categorical) -> Float[Array, "..."]:
    """KL[p || q] in nats."""
    return jnp.sum(p.probs * (p.logp - q.logp), -1)


def entropy(p: Categorical) -> Float[Array, "..."]:
    """Entropy in nats."""
    return -jnp.sum(p.probs * p.logp, -1)


def balanced_kl(
    post: Categorical, prior: Categorical, free_nats: Float[Array, ""] | float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The two KL losses of DreamerV3, eq. 3: dynamics (moves the prior) and representation (moves the posterior).

    Args:
        post, prior: Categoricals [..., S, K].
        free_nats: each sum over the S latents is clipped from below at this many nats, where it gives no gradient.

    Returns:
        (dyn, rep), nats, [...].
    """
    dyn = kl(sg(post), prior).sum(-1)
    rep = kl(post, sg(prior)).sum(-1)
    return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats)


# ---- returns -------------------------------------------------------------------------------------------------------


def lambda_return(
    reward: Float[Array, "T *b"],
    value: Float[Array, "T *b"],
    live: Float[Array, "T *b"],
    last: Bool[Array, "T *b"] | Float[Array, "T *b"],
    lam: Float[Array, ""] | float,
) -> Float[Array, "T-1 *b"]:
    """R_t = r_{t+1} + live_{t+1} ((1 - c_{t+1}) v_{t+1} + c_{t+1} R_{t+1}), c = lam (1 - last) (DreamerV3, eq. 5).

    Args:
        reward: arrival-indexed: reward[t] came with state t, so reward[0] is not used.
        value: bootstrap values; the last one starts the recursion.
        live: discount times probability that the episode goes on after state t (0 at a terminal state).
        last: where a replayed sequence breaks off: bootstrap there instead of reading on into the next episode.
        lam: mixes one-step and longer returns.
    """
    cont = lam * (1 - last.astype(jnp.float32))
    inputs = (reward[1:] + live[1:] * (1 - cont[1:]) * value[1:], live[1:] * cont[1:])

    def back(following, step):
        here, decay = step
        ret = here + decay * following
        return ret, ret

    return lax.scan(back, value[-1], inputs, reverse=True)[1]


class ReturnScale(eqx.Module):
    """Moving averages of the 5th and 95th percentile of returns (DreamerV3, eq. 7)."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    weight: Float[Array, ""]

    @staticmethod
    def zero() -> "ReturnScale":
        return ReturnScale(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def update_scale(scale: ReturnScale, returns: Float[Array, "..."], rate: Float[Array, ""] | float) -> ReturnScale:
    """One step of the moving averages towards the percentiles of `returns`; sends no gradient."""
    low, high = jnp.percentile(sg(returns), np.array([5.0, 95.0], np.float32))
    mix = lambda old, new: (1 - rate) * old + rate * new
    return ReturnScale(mix(scale.low, low), mix(scale.high, high), mix(scale.weight, 1.0))


def divisor(scale: ReturnScale, floor: Float[Array, ""] | float, debias: bool) -> Float[Array, ""]:
    """max(floor, S). `debias` corrects the averages for their start at zero, which a floor of 1 hides (DreamerV3)
    and a small one does not."""
    spread = scale.high - scale.low
    if debias:
        spread = spread / jnp.maximum(scale.weight, 1e-8)
    return jnp.maximum(floor, spread)
