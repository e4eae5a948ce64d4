"""
A vision-language backbone of your own: ``ConvFiLM``, a small convolutional network whose features the instruction scales and
shifts (FiLM, Perez et al. 2018). Fine-tuned, post-trained, saved and loaded. Run: python examples/own_backbone.py
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

import sb3_vla
import sb3_vla_envs


class ConvFiLM(sb3_vla.VLABackbone):
    def __init__(self, state_dim: int, n_cameras: int = 2, width: int = 32) -> None:  # the last two from backbone_kwargs
        super().__init__(features_dim=128)
        self.sizes = {"n_cameras": n_cameras, "width": width}
        convolutions = [nn.Conv2d(3, width, 5, 3), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU()]
        self.vision = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(6))
        self.language = nn.EmbeddingBag(1024, 2 * n_cameras * width, padding_idx=0)
        self.readout = nn.Sequential(nn.Linear(n_cameras * width * 36 + state_dim, 256), nn.ReLU(), nn.Linear(256, 256))

    def encode_images(self, images: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([self.vision(image / 127.5 - 1) for image in images.values()], dim=1)  # (batch, cameras * width, 6, 6)

    def forward(self, image_tokens: th.Tensor, prompts: Sequence[str], state: th.Tensor) -> sb3_vla.BackboneFeatures:
        # A bag of words, each numbered by its hash, 0 where a prompt has fewer than the longest
        words = [th.tensor([1 + zlib.crc32(word.encode()) % 1023 for word in prompt.split()]) for prompt in prompts]
        numbers = nn.utils.rnn.pad_sequence(words, batch_first=True).to(state.device)
        scale, shift = self.language(numbers)[:, :, None, None].chunk(2, dim=1)
        told = nn.functional.relu(image_tokens * (1 + scale) + shift).flatten(start_dim=1)
        return sb3_vla.BackboneFeatures(*self.readout(th.cat([told, state], dim=1)).chunk(2, dim=1))  # for action and value

    def constructor_kwargs(self) -> dict[str, Any]:
        return self.sizes  # what a saved model rebuilds it from


def main(out="own_backbone.zip", n_demos=40, n_epochs=30, n_goals=25, timesteps=6_000, n_steps=120, batch_size=160):
    task, env = "drawer-close-v3", sb3_vla.make_vla_vec_env("drawer-close-v3", n_envs=8)
    policy = {"backbone": ConvFiLM, "backbone_kwargs": {"width": 24}, "head_kwargs": {"noise_correlation": 1.0}}
    rates = {"learning_rate": 1e-4, "critic_learning_rate": 1e-3, "critic_epochs": 20, "n_epochs": 2, "bc_weight": 0.2}
    model = sb3_vla.PPOSelfBC("VLAPolicy", env, policy_kwargs=policy, n_steps=n_steps, batch_size=batch_size, **rates)
    demonstrations = sb3_vla_envs.collect_demonstrations(task, n_demos)
    sb3_vla.fine_tune(model, demonstrations, n_epochs=n_epochs)
    print("fine-tuned", sb3_vla.evaluate_on_tasks(model, task, n_goals).table(), sep="\n")
    model.learn(timesteps).save(out)
    loaded = sb3_vla.PPOSelfBC.load(out)
    print("post-trained, saved, loaded", sb3_vla.evaluate_on_tasks(loaded, task, n_goals).table(), sep="\n")
    return loaded


if __name__ == "__main__":
    main()
