"""Claims about encoders."""

import pytest
import torch

from gjwm.models.decoder import ConvDecoder
from gjwm.models.encoders import ConvEncoder, MLPEncoder


def images(*lead, channels=3, size=32):
    return torch.randint(
        0,
        256,
        (*lead, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def test_leading_axes_are_batch_axes():
    torch.manual_seed(0)
    encoder = ConvEncoder((3, 32, 32), 8).eval()
    o = images(2, 5)
    z = encoder(o)
    assert z.shape == (2, 5, 8) and z.dtype == torch.float32
    torch.testing.assert_close(z[1, 3], encoder(o[1, 3]))


def test_training_output_has_zero_mean_and_unit_variance_from_the_first_step():
    torch.manual_seed(0)
    z = ConvEncoder((3, 32, 32), 8)(images(64))
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(8), atol=0.05, rtol=0)


def test_encoding_leaves_the_observation_alone():
    o, before = images(4), images(4)
    ConvEncoder((3, 32, 32), 8)(o)
    assert torch.equal(o, before)


def test_mlp_encoder_does_not_care_about_the_scale_of_its_inputs():
    torch.manual_seed(0)
    encoder = MLPEncoder((4,), 3)
    o = torch.randn(128, 4)
    torch.testing.assert_close(encoder(o), encoder(1000 * o + 7), atol=2e-3, rtol=0)


def test_symlog_keeps_ordinary_values_apart_beside_rare_large_ones():
    """One sample in 16 is 1,000 times as large: without symlog the others are standardised into one
    point.
    """
    o = torch.linspace(-1, 1, 256)[:, None].clone()
    o[::16] *= 1000
    ordinary = torch.arange(256) % 16 != 0

    def spread(symlog):
        torch.manual_seed(0)
        encoder = MLPEncoder((1,), 2, symlog=symlog)
        standardised = encoder.net[0](o.sign() * o.abs().log1p() if symlog else o)
        assert encoder(o).shape == (256, 2)
        return standardised[ordinary].std().item()

    assert spread(True) > 10 * spread(False)
    encoder = MLPEncoder((1,), 2, symlog=True).eval()
    assert torch.equal(
        encoder(torch.tensor([[3.0]])),
        MLPEncoder.features(encoder, torch.tensor([[3.0]])) / (1 + 1e-8) ** 0.5,
    )


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    encoder = ConvEncoder((6, 64, 64), 4)
    encoder(images(8, channels=6, size=64)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_decoder_makes_images_of_the_asked_shape():
    decoder = ConvDecoder(5, (3, 32, 48))
    image = decoder.image(torch.randn(2, 7, 5))
    assert image.shape == (2, 7, 3, 32, 48) and image.dtype == torch.uint8


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="3, 32, 32"):
        ConvEncoder((3, 32, 32), 8)(images(2, channels=1))
    with pytest.raises(ValueError, match="multiples"):
        ConvEncoder((3, 30, 30), 8)
    with pytest.raises(ValueError, match="output_norm"):
        MLPEncoder((3,), 2, output_norm="layer")
    with pytest.raises(ValueError, match="divisible"):
        ConvDecoder(4, (3, 30, 30))


def distance_of_evaluation_mode(encoder, seed):
    """Of latents in evaluation mode from those in training mode, in their variances, while the
    encoder learns where a dot of 2x2 pixels is on a picture that is always the same.
    """
    generator = torch.Generator().manual_seed(seed)
    background = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
    head = torch.nn.Linear(encoder.latent_dim, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 1e-3)

    def pictures(count):
        place = torch.randint(0, 30, (count, 2), generator=generator)
        o = background.repeat(count, 1, 1, 1)
        for picture, (y, x) in zip(o, place.tolist()):
            picture[:, y : y + 2, x : x + 2] = 255
        return o, (place - 14.5) / 9

    distances = []
    for step in range(150):
        o, y = pictures(64)
        optimizer.zero_grad()
        (head(encoder(o)) - y).square().mean().backward()
        optimizer.step()
        if step >= 130:
            o, _ = pictures(256)
            with torch.no_grad():
                z = encoder.eval()(o)
                x = encoder.train().features(o)
            x = (x - x.mean(0)) / x.std(0)
            distances.append((z - x).square().mean())
    return torch.stack(distances).mean().item()


def test_an_encoder_that_learns_is_the_same_in_evaluation_mode():
    nothing = {"centred": torch.tensor(True)}  # grey is taken off, as if it were a mean
    for mean, near in (({}, True), (nothing, False)):
        torch.manual_seed(1)
        encoder = ConvEncoder((3, 32, 32), 8)
        encoder.load_state_dict(encoder.state_dict() | mean)
        distance = distance_of_evaluation_mode(encoder, seed=1)
        assert distance < 0.1 if near else distance > 0.3


def test_a_step_that_is_taken_back_takes_the_mean_picture_back():
    """As `fit` does with a step whose loss is NaN; the next one then learns it anew."""
    encoder, first = ConvEncoder((3, 32, 32), 8), images(6)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    encoder(255 - first)
    encoder.load_state_dict(before)
    encoder(first)
    torch.testing.assert_close(encoder.mean, first.float().mean(0))


def test_the_mean_picture_is_that_of_the_first_batch_learned_from_and_is_kept():
    encoder, first = ConvEncoder((3, 32, 32), 8), images(6)
    encoder.eval()(images(2))
    assert (encoder.mean == encoder.mean[0, 0, 0]).all()  # evaluation learns nothing
    encoder.train()(first)
    torch.testing.assert_close(encoder.mean, first.float().mean(0))
    encoder(255 - first)
    kept = ConvEncoder((3, 32, 32), 8)
    kept.load_state_dict(encoder.state_dict())
    kept.train()(255 - first)
    torch.testing.assert_close(kept.mean, first.float().mean(0))
