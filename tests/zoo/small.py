"""Recipes that train in a moment, and data for them."""

import torch

from crosscoding.zoo.training.recipe import DigitRecipe, FaceRecipe

TINY_DIGITS = DigitRecipe(
    latent_dim=2, hidden=(5,), epochs=3, batch_size=4, seed=3, data_shape=(3, 2)
)
TINY_FACES = FaceRecipe(
    latent_dim=2,
    faces="anime",
    epochs=3,
    batch_size=8,
    channels=(6, 5),
    encoder_channels=(4, 6),
    held_out=10,
    data_shape=(3, 8, 8),
)
TINY = {"digits": TINY_DIGITS, "faces": TINY_FACES}


def tiny_digits(num=18):
    return (torch.rand(num, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def tiny_faces(num=24):
    """Pictures of one colour each, brighter on the left, with some noise."""
    generator = torch.Generator().manual_seed(0)
    shade = 60 * torch.rand(num, 3, 1, 1, generator=generator) + 60
    light = torch.linspace(1, 0, 8) * torch.rand(num, 1, 1, 1, generator=generator)
    noise = torch.randn(num, 3, 8, 8, generator=generator)
    return (shade + 90 * light + 5 * noise).clamp(0, 255).to(torch.uint8)


TINY_DATA = {"digits": tiny_digits, "faces": tiny_faces}
