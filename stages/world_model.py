"""World model: encoder, RSSM, decoder, reward and continue heads; the posterior of a window, and its losses.

Axes: T time (leading), B windows, then each part's own. Source: DreamerV3, eq. 1-3.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.lax import stop_gradient as sg
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from envs.environment import ActionSpace, Obs, Space
from stages import rssm
from stages.config import Config, Hypers, Scalar
from stages.decode import Decoder, make_decoder, recon_losses, sum_entries
from stages.encode import Encoder, embed_size, make_encoder
from stages.networks.distributions import Categorical, kl
from stages.networks.heads import ContinueHead, OutcomeHead, TwoHotHead
from stages.rssm import RSSM, Latent


class WorldModel(eqx.Module):
    """All that is learned of the environment."""

    encoder: Encoder
    rssm: RSSM
    decoder: Decoder
    reward: TwoHotHead | OutcomeHead
    cont: ContinueHead | None  # None: an OutcomeHead says both
    reward_range: tuple[Float[Array, ""], Float[Array, ""]] | None
    """The lowest and the highest reward so far, and 0; None: small rewards are not enlarged."""
    actions: ActionSpace = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: Config, obs: Space, actions: ActionSpace, *, key: PRNGKeyArray):
        model = config.model
        key_encoder, key_rssm, key_decoder, key_reward, key_cont = jr.split(key, 5)
        self.encoder = make_encoder(obs, model, key=key_encoder)
        self.rssm = RSSM(model, embed_size(obs, model), actions.size, key=key_rssm)
        self.decoder = make_decoder(obs, model, key=key_decoder)
        if model.outcome == "joint":
            self.reward, self.cont = OutcomeHead(model.feat, model.units, model.bins, key=key_reward), None
        else:
            self.reward = TwoHotHead(model.feat, model.units, 1, model.bins, key=key_reward)
            self.cont = ContinueHead(model.feat, model.units, key=key_cont)
        self.reward_range = (jnp.zeros(()), jnp.zeros(())) if config.enlarge_rewards else None
        self.actions = actions
        self.dtype = compute_dtype(model.dtype)


def see_rewards(model: WorldModel, reward: Float[Array, "..."]) -> WorldModel:
    """The model after it has seen rewards, in the environment's unit: `reward_scale` may have changed."""
    if model.reward_range is None:
        return model
    low, high = model.reward_range
    seen = (jnp.minimum(low, reward.min()), jnp.maximum(high, reward.max()))
    return eqx.tree_at(lambda m: m.reward_range, model, seen)


def reward_scale(model: WorldModel) -> Scalar:
    """What rewards are divided by before they are learned: the largest absolute one so far, if that is below 1 and any
    was above 0; else 1.

    Two-hot bins near 0 lie far apart (0.9 with 63 bins). A reward of 0.01 is a hundredth of that, and is never learned
    (docs/experiments/recipe.md). Costs alone are not enlarged. In Deep Sea a step to the right costs a thousandth of
    the goal. If it counted 1 before the goal is found, the tasker would learn to avoid the way there.
    """
    if model.reward_range is None:
        return 1.0
    low, high = model.reward_range
    return jnp.where(high > 0, jnp.minimum(jnp.maximum(-low, high), 1.0), 1.0)


def expected_reward(model: WorldModel, feat: Float[Array, "... F"]) -> Float[Array, "..."]:
    """What the head expects on arrival in a state, in the environment's unit."""
    return reward_scale(model) * model.reward.mean(model.reward(feat))


def continue_logit(model: WorldModel, feat: Float[Array, "... F"]) -> Float[Array, "..."]:
    """The logit of the probability that the episode goes on behind a state, times the discount."""
    if isinstance(model.reward, OutcomeHead):
        return model.reward.continue_logit(model.reward(feat))
    assert model.cont is not None
    return model.cont(feat)


def compute_dtype(name: str) -> jnp.dtype:
    """The arithmetic's type: what was asked for, or bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def action_vector(model: WorldModel, action: Shaped[Array, "..."]) -> Float[Array, "... A"]:
    """Stored action -> the vector that the model reads, float32: one-hot of a discrete one, of several one by one."""
    if model.actions.kind == "continuous":
        return action.astype(jnp.float32)
    if model.actions.kind == "discrete":
        return jax.nn.one_hot(action, model.actions.size)
    return jnp.concatenate([jax.nn.one_hot(action[..., d], n) for d, n in enumerate(model.actions.choices)], -1)


class Observed(eqx.Module):
    """The model's account of a window, [T, B, ...]."""

    latent: Latent
    post: Categorical
    prior: Categorical


def observe(
    model: WorldModel,
    context: Latent,
    action: Float[Array, "T B A"],
    obs: Obs,
    is_first: Bool[Array, "T B"],
    unimix: Scalar,
    *,
    key: PRNGKeyArray,
) -> Observed:
    """Encode a window and run the posterior through it.

    Args:
        context: stored latent [B, ...] of the row before the window.
        action: vectors of the actions before each row.
        obs: [T, B, *obs] in storage type.
        is_first: rows that begin an episode: nothing from before them is kept.
        unimix: uniform share of posterior and prior.
    """
    embed = model.encoder(obs, model.dtype)
    uniform = jr.uniform(key, (*is_first.shape, model.rssm.stoch))
    latent, post, prior = rssm.observe_embeds(model.rssm, context, embed, action, is_first, uniform, unimix)
    return Observed(latent, post, prior)


def model_loss(
    model: WorldModel,
    observed: Observed,
    obs: Obs,
    reward: Float[Array, "T B"],
    is_terminal: Bool[Array, "T B"],
    hypers: Hypers,
    reward_free: bool,
) -> tuple[dict[str, Float[Array, "T B"]], dict[str, Float[Array, ""]]]:
    """Reconstruction, reward, continue and both KL losses of every row, in nats.

    Args:
        reward_free: the reward and continue heads read features without gradient, so that no reward shapes the model.

    Returns:
        (losses, metrics).
    """
    feat = observed.latent.feat
    head_feat = sg(feat) if reward_free else feat
    dyn, rep = balanced_kl(observed.post, observed.prior, hypers.free_nats)
    # The continue target carries the discount: imagined weights are then products of continues alone.
    target = (1 - is_terminal.astype(jnp.float32)) * (1 - 1 / hypers.discount_horizon)
    logits = model.reward(head_feat)
    if isinstance(model.reward, OutcomeHead):
        logit, reward_loss = model.reward.continue_logit(logits), model.reward.loss(logits, reward, target)
    else:
        logit, reward_loss = continue_logit(model, head_feat), model.reward.loss(logits, reward)
    recon = recon_losses(model.decoder, observed.latent, obs)
    losses = {
        "recon": sum_entries(recon),
        "reward": reward_loss,
        "cont": jax.nn.softplus(logit) - target * logit,
        "dyn": dyn,
        "rep": rep,
    }
    metrics = {
        "dyn_ent": observed.prior.entropy().sum(-1).mean(),
        "rep_ent": observed.post.entropy().sum(-1).mean(),
        "kl": sg(kl(observed.post, observed.prior)).sum(-1).mean(),  # both losses', before free nats
        "kl_free": (dyn <= hypers.free_nats).mean(dtype=jnp.float32),  # share of rows whose KL costs nothing
    }
    if len(recon) > 1:
        metrics |= {f"recon_{name}": sg(loss).mean() for name, loss in recon.items()}
    return losses, metrics


def balanced_kl(
    post: Categorical, prior: Categorical, free_nats: Scalar
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
