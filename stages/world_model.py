"""World model: encoder, RSSM, decoder, reward and continue heads; what they see of a window and what they lose.

Axes: T time (leading), B windows, then each part's own. Source: DreamerV3, eq. 1-3.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from envs.environment import ActionSpace, ObsSpace
from stages import recur, rssm
from stages.config import Config, Hypers
from stages.decode import ContinueHead, Decoder, TwoHotHead, make_decoder, recon_loss
from stages.encode import Encoder, embed_size, make_encoder
from stages.maths import Categorical, balanced_kl, entropy, sg, unimix
from stages.rssm import RSSM, Latent


class WorldModel(eqx.Module):
    """All that is learned of the environment."""

    encoder: Encoder
    rssm: RSSM
    decoder: Decoder
    reward: TwoHotHead
    cont: ContinueHead
    actions: ActionSpace = eqx.field(static=True)
    dtype: jnp.dtype = eqx.field(static=True)

    def __init__(self, config: Config, obs: ObsSpace, actions: ActionSpace, *, key: PRNGKeyArray):
        model = config.model
        key_encoder, key_rssm, key_decoder, key_reward, key_cont = jr.split(key, 5)
        feat = model.deter + model.stoch * model.classes
        self.encoder = make_encoder(obs, model, key=key_encoder)
        self.rssm = RSSM(model, embed_size(obs, model), actions.size, key=key_rssm)
        self.decoder = make_decoder(obs, model, key=key_decoder)
        self.reward = TwoHotHead(feat, model.units, 1, model.bins, key=key_reward)
        self.cont = ContinueHead(feat, model.units, key=key_cont)
        self.actions = actions
        self.dtype = compute_dtype(model.dtype)


def compute_dtype(name: str) -> jnp.dtype:
    """The arithmetic's type: what was asked for, or bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def action_vector(model: WorldModel, action: Array) -> Float[Array, "... A"]:
    """Stored action -> the vector that the model reads: one-hot of a discrete one."""
    if model.actions.kind == "discrete":
        return jax.nn.one_hot(action, model.actions.size, dtype=model.dtype)
    return action.astype(model.dtype)


class Observed(eqx.Module):
    """What the model made of a batch, [T, B, ...]."""

    latent: Latent
    embed: Float[Array, "T B E"]
    post: Categorical
    prior: Categorical


def observe(
    model: WorldModel,
    context: Latent,
    action: Float[Array, "T B A"],
    obs: Array,
    is_first: Bool[Array, "T B"],
    ratio: Float[Array, ""] | float,
    *,
    key: PRNGKeyArray,
) -> Observed:
    """Run the posterior through a window.

    Args:
        context: stored latent [B, ...] of the row before the window.
        action: vectors of the actions before each row.
        obs: [T, B, *obs] in storage type.
        is_first: rows that begin an episode: nothing from before them is kept.
        ratio: unimix.
    """
    embed = model.encoder(obs, model.dtype)
    dynamics = rssm.laid_out(model.rssm)
    share = rssm.embed_share(dynamics, embed)
    moved = rssm.action_share(dynamics, action, is_first)
    uniform = jr.uniform(key, (*is_first.shape, model.rssm.stoch))

    def step(params, latent, x, fixed):
        (action, share), (reset, uniform, ratio) = x, fixed
        latent, logits = rssm.posterior_step(params, latent, action, share, reset, uniform, ratio)
        return latent, (latent, logits)

    ratios = jnp.broadcast_to(ratio, (is_first.shape[0], 1, 1, 1))
    _, (latent, logits) = recur.scan(step, dynamics, context, (moved, share), (is_first, uniform, ratios))
    prior = rssm.prior_logits(dynamics, latent.deter)
    return Observed(latent, embed, unimix(logits, ratio), unimix(prior, ratio))


def model_loss(
    model: WorldModel,
    seen: Observed,
    obs: Array,
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
    feat = rssm.feat(seen.latent)
    head_feat = sg(feat) if reward_free else feat
    dyn, rep = balanced_kl(seen.post, seen.prior, hypers.free_nats)
    # The continue target carries the discount: imagined weights are then products of continues alone.
    goes_on = (1 - is_terminal.astype(jnp.float32)) * (1 - 1 / hypers.discount_horizon)
    cont = model.cont(head_feat)
    losses = {
        "recon": recon_loss(model.decoder, seen.latent.deter, seen.latent.stoch, obs),
        "reward": model.reward.loss(model.reward(head_feat), reward),
        "cont": jax.nn.softplus(cont) - goes_on * cont,
        "dyn": dyn,
        "rep": rep,
    }
    metrics = {"dyn_ent": entropy(seen.prior).sum(-1).mean(), "rep_ent": entropy(seen.post).sum(-1).mean()}
    return losses, metrics
