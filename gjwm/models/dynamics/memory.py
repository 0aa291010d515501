"""Memories: what the past adds to (z, a) where one latent does not show the whole state (velocity,
a hidden branch).

A memory reads latents and actions in time order and gives a feature per step, which the dynamics
add to their first hidden layer. Read step by step with a carried state, or a whole sequence at
once, it gives the same features. Leading axes are free, so candidates and particles carry states of
their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

State = tuple[Tensor, ...]


class GRUMemory(nn.Module):
    """A belief b_t = GRU(b_{t-1}, [z_t, a_t]) over all of the past; starts at zero.

    Args:
        latent_dim, action_dim: D, A.
        features: width of the belief.
    """

    def __init__(self, latent_dim: int, action_dim: int, features: int):
        super().__init__()
        self.features = features
        self.gru = nn.GRU(latent_dim + action_dim, features, batch_first=True)

    def start(self, lead: tuple[int, ...], like: Tensor) -> State:
        """The empty past of `lead` sequences."""
        return (like.new_zeros(*lead, self.features),)

    def read(self, z: Tensor, a: Tensor, state: State) -> tuple[Tensor, State]:
        """z (..., T, D), a (..., T, A), state -> features (..., T, F), state after the last
        step.
        """
        lead = z.shape[:-2]
        x = rearrange(torch.cat([z, a], -1), "... t d -> (...) t d")
        # cuDNN asks for it
        beliefs, last = self.gru(x, state[0].reshape(1, -1, self.features).contiguous())
        return beliefs.reshape(*lead, z.shape[-2], self.features), (
            last.reshape(*lead, self.features),
        )


class TransformerMemory(nn.Module):
    """A causal transformer over the last `window` latents, each block's normalisation steered by
    the action (AdaLN-zero, Peebles & Xie, 2023; the predictor of LeWorldModel has this shape).

    Keys and values of the window are the carried state, so a rollout step costs one token, not a
    window. Positions enter as a learned bias per head and distance, so a step does not depend on
    where its sequence began.

    Args:
        latent_dim, action_dim: D, A.
        features: token width.
        layers, heads: blocks and attention heads.
        window: steps that a token attends to, itself included.
    """

    def __init__(
        self,
        latent_dim: int,
        action_dim: int,
        features: int,
        *,
        layers: int = 2,
        heads: int = 4,
        window: int = 8,
    ):
        super().__init__()
        if features % heads:
            raise ValueError(
                f"a transformer's width must be a multiple of heads={heads}, got {features}."
            )
        if window < 1 or layers < 1:
            raise ValueError(
                f"a transformer needs window >= 1 and layers >= 1, got {window} and {layers}."
            )
        self.features, self.window = features, window
        self.embed = nn.Linear(latent_dim, features)
        self.condition = nn.Sequential(nn.Linear(action_dim, features), nn.SiLU())
        self.blocks = nn.ModuleList(_Block(features, heads, window) for _ in range(layers))
        self.norm = nn.LayerNorm(features)

    def start(self, lead: tuple[int, ...], like: Tensor) -> State:
        """The empty past of `lead` sequences: no keys yet."""
        return tuple(like.new_zeros(*lead, 0, 2 * self.features) for _ in self.blocks)

    def read(self, z: Tensor, a: Tensor, state: State) -> tuple[Tensor, State]:
        """z (..., T, D), a (..., T, A), state -> features (..., T, F), state after the last
        step.
        """
        lead = z.shape[:-2]
        x = self.embed(rearrange(z, "... t d -> (...) t d"))
        condition = self.condition(rearrange(a, "... t a -> (...) t a"))
        new_state = []
        for block, past in zip(self.blocks, state):
            x, kept = block(x, condition, past.reshape(len(x), *past.shape[-2:]))
            new_state.append(kept.reshape(*lead, *kept.shape[-2:]))
        return self.norm(x).reshape(*lead, z.shape[-2], self.features), tuple(new_state)


class _Block(nn.Module):
    """Attention and MLP, each behind an AdaLN whose shift, scale and gate come from the action;
    gates start at zero.
    """

    def __init__(self, features: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.modulation = nn.Linear(features, 6 * features)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.query, self.key_value = (
            nn.Linear(features, features),
            nn.Linear(features, 2 * features),
        )
        self.out = nn.Linear(features, features)
        self.mlp = nn.Sequential(
            nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features)
        )
        self.distance_bias = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x: Tensor, condition: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x, condition (N, T, F), past keys and values (N, L, 2F) -> (N, T, F), the last window-1
        keys and values.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(condition).chunk(6, -1)
        normed = self.norm(x) * (1 + scale) + shift
        key_value = torch.cat([past, self.key_value(normed)], 1)  # (N, L+T, 2F)
        x = x + gate * self._attend(normed, key_value)
        x = x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)
        return x, key_value[:, max(0, key_value.shape[1] - self.window + 1) :]

    def _attend(self, x: Tensor, key_value: Tensor) -> Tensor:
        t, length = x.shape[1], key_value.shape[1]

        def split(y: Tensor) -> Tensor:
            return rearrange(y, "n t (heads f) -> n heads t f", heads=self.heads)

        here = torch.arange(length - t, length, device=x.device)
        distance = here[:, None] - torch.arange(length, device=x.device)  # (T, L+T) how long ago
        bias = self.distance_bias[:, distance.clamp(0, self.window - 1)]
        bias = bias.masked_fill((distance < 0) | (distance >= self.window), -torch.inf)
        key, value = key_value.chunk(2, -1)
        y = F.scaled_dot_product_attention(
            split(self.query(x)), split(key), split(value), attn_mask=bias
        )
        return self.out(rearrange(y, "n heads t f -> n t (heads f)"))


def make_memory(
    kind: str, latent_dim: int, action_dim: int, features: int, window: int
) -> nn.Module | None:
    """The memory named by `kind`: "mlp" has none, "gru" or "transformer".

    Raises:
        ValueError: for another name.
    """
    if kind == "mlp":
        return None
    if kind == "gru":
        return GRUMemory(latent_dim, action_dim, features)
    if kind == "transformer":
        return TransformerMemory(latent_dim, action_dim, features, window=window)
    raise ValueError(f"a backbone must be 'mlp', 'gru' or 'transformer', got {kind!r}.")
