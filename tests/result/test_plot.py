"""`Posterior.plot`: densities against closed forms, evidence in its place, matplotlib's habits."""

import gc
import sys
import weakref

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from problems import mixture_target
from torch import nn
from torch.distributions import Normal

import crosscoding as cc
from crosscoding.likelihoods import Bernoulli, Categorical, Gaussian, Mixed
from crosscoding.plots import Panels


def linear(data_dim: int, latent: int, scale: float, *, seed: int = 0) -> cc.VAE:
    torch.manual_seed(seed)
    return cc.VAE(nn.Linear(latent, data_dim), latent, Gaussian(scale))


def figure_of(panels: Panels) -> Figure:
    figure = panels.figure
    figure.canvas.draw()  # whatever is wrong with it is found when it is drawn
    return figure


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_mark_what_was_observed(digit_posterior):
    panels = digit_posterior.plot(num=2)
    axes = panels[0, 0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names[:2] == ["observed", "mean"]
    assert names[3:] == ["draw 1", "draw 2"]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"query {q}\n{v.label}" for q, v in enumerate(digit_posterior.verdicts)]
    sheet = np.asarray(axes.images[0].get_array())
    gap = (sheet.shape[1] - 5 * 28) // 6
    observed = sheet[gap : gap + 28, gap : gap + 28]
    seen = digit_posterior.target.evidence.values[0].numpy() > 0
    upper = observed[:14]
    assert (upper[..., 0] > upper[..., 2])[seen[:14]].all()  # orange where white
    assert (upper[..., 2] > upper[..., 0])[~seen[:14]].all()  # blue where black
    assert (observed[14:] == 0.5).all()
    mean = sheet[gap : gap + 28, 2 * gap + 28 : 2 * gap + 56]
    exact = digit_posterior.mean()[0, 14:].numpy()
    np.testing.assert_allclose(mean[14:, :, 0], exact, atol=0.15)


def test_pixels_known_in_part_are_green():
    vae = cc.VAE(nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (8, 8))), 2, Gaussian(0.1))
    low = torch.full((8, 8), -torch.inf)
    low[0] = 0.0
    posterior = cc.condition(vae, cc.Evidence.interval(low=low), seed=0)
    sheet = np.asarray(posterior.plot(num=0)[0, 0].images[0].get_array())
    row, rest = sheet[1, 1:9], sheet[2:9, 1:9]
    assert (row[..., 1] > row[..., 0]).all()
    assert (row[..., 1] > row[..., 2]).all()
    assert (rest == 0.5).all()


@pytest.mark.parametrize(
    ("shape", "num_panels"),
    [((8, 9), 1), ((1, 8, 9), 1), ((3, 8, 9), 1), ((8, 9, 3), 1), ((2, 8, 9), 2), ((5, 8, 9), 5)],
)
def test_channels_have_panels_of_their_own_unless_they_are_colours(shape, num_panels):
    size = int(np.prod(shape))
    vae = cc.VAE(nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape)), 2, Gaussian(0.1))
    posterior = cc.condition(vae, cc.Evidence(torch.zeros(shape), torch.rand(shape) < 0.5), seed=0)
    panels = posterior.plot(num=1)
    assert panels.shape == (1, num_panels)
    figure_of(panels)
    titles = [axes.get_title("left") for axes in panels.flat]
    assert titles == ([""] if num_panels == 1 else [f"channel {c}" for c in range(num_panels)])
    if num_panels == 5:
        assert posterior.plot(only=[3, 1], num=0).shape == (1, 2)
        with pytest.raises(ValueError, match="channels from 0 to 4 in only, got 5"):
            posterior.plot(only=[5])
    assert posterior._repr_html_()
    assert vae._repr_html_()


def test_flat_data_are_shown_in_a_shape():
    vae = cc.VAE(nn.Linear(2, 48), 2, Bernoulli())
    posterior = cc.condition(vae, cc.Evidence(torch.ones(48), torch.arange(48) < 9), seed=0)
    sheet = posterior.plot(shape=(6, 8), num=0)[0, 0].images[0].get_array()
    assert sheet.shape == (6 + 2, 3 * 8 + 4, 3)
    with pytest.raises(ValueError, match=r"a shape of 48 elements, like data of shape \(48,\)"):
        posterior.plot(shape=(7, 7))
    with pytest.raises(ValueError, match=r"for pictures, got \(48,\); use kind='elements'"):
        posterior.plot("pictures")


# ---- elements ------------------------------------------------------------------------------------


def test_elements_are_drawn_with_what_was_known():
    vae = linear(6, 2, 0.1)
    values = torch.tensor([0.1, 0.2, 0.0, 0.0, 0.0, 0.0])
    noise = torch.tensor([0.0, 0.05, 0.0, 0.0, 0.0, 0.0])
    low = torch.tensor([-torch.inf, -torch.inf, -0.3, 0.1, -torch.inf, -torch.inf])
    high = torch.tensor([torch.inf, torch.inf, 0.4, torch.inf, torch.inf, torch.inf])
    evidence = cc.Evidence(values, torch.arange(6) < 2, noise=noise) & cc.Evidence.interval(
        low, high
    )
    posterior = cc.condition(vae, evidence, seed=0)
    panels = posterior.plot()
    assert panels.shape == (1, 1)
    figure = figure_of(panels)
    axes = panels[0, 0]
    shown = np.concatenate([line.get_ydata() for line in axes.lines])
    for number in (0.1, 0.2, -0.3, 0.4):
        assert np.isclose(shown, number, atol=1e-6).any()
    means = next(line for line in axes.lines if len(line.get_ydata()) == 4)
    np.testing.assert_allclose(means.get_ydata(), posterior.mean()[2:].numpy(), atol=1e-6)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["mean", "90% interval", "observed", "bound"]
    assert figure.axes == [axes]


@pytest.mark.parametrize(("shape", "num"), [((100,), 1), ((2, 60), 2), ((3, 4, 5, 6), 1)])
def test_signals_and_arrays_are_drawn_as_lines(shape, num):
    size = int(np.prod(shape))
    vae = cc.VAE(nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape)), 2, Gaussian(0.1))
    evidence = cc.Evidence(torch.zeros(2, *shape), torch.rand(shape) < 0.2)
    panels = cc.condition(vae, evidence, seed=0).plot(num=3)
    assert panels.shape == (2, num)
    figure_of(panels)
    assert panels[0, 0].get_xlim()[1] == size / num - 1


def test_classes_are_drawn_as_circles():
    likelihood = Mixed([(Gaussian(0.3), 1), (Categorical(4), 2), (Bernoulli(), 1)])
    vae = cc.VAE(nn.Linear(2, 10), 2, likelihood)
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[1, 0] = False
    evidence = cc.Evidence(torch.tensor([0.0, 0, 2, 0]), torch.tensor([False, False, True, False]))
    posterior = cc.condition(vae, evidence & cc.Evidence.one_of(allowed), seed=0)
    axes = posterior.plot()[0, 0]
    circles = axes.collections[-1]
    at = circles.get_offsets()
    sizes = circles.get_sizes()[at[:, 0] == 1]
    expected = posterior.probabilities()[1].numpy()
    np.testing.assert_allclose(sizes / sizes.sum(), expected, atol=1e-5)
    assert sizes[0] == 0


# ---- latent --------------------------------------------------------------------------------------


def test_latents_in_one_two_and_more_dimensions():
    for dim in (1, 2, 4):
        posterior = cc.condition(
            linear(5, dim, 0.3), cc.Evidence(torch.zeros(3, 5), torch.arange(5) < 2), seed=0
        )
        panels = posterior.plot("latent", queries=[0, 1], dims=(1, 0))
        assert panels.shape == (1, 2)
        figure_of(panels)
    assert panels[0, 0].get_xlabel() == "z$_{1}$"
    with pytest.raises(ValueError, match=r"two different numbers from 0 to 3, got \(0, 4\)"):
        posterior.plot("latent", dims=(0, 4))


def test_the_curve_of_one_latent_is_the_exact_density():
    vae = linear(2, 1, 0.5)
    posterior = cc.condition(vae, cc.Evidence(torch.ones(2), torch.ones(2) > 0), seed=0)
    x, density = posterior.plot("latent")[0, 0].lines[0].get_data()
    weight, bias = vae.decoder.weight[:, 0].double(), vae.decoder.bias.double()
    precision = 1 + (weight.square() / 0.25).sum()
    mean = ((1 - bias) * weight / 0.25).sum() / precision
    exact = Normal(mean, precision.rsqrt()).log_prob(torch.from_numpy(np.asarray(x))).exp()
    np.testing.assert_allclose(density, exact.detach().numpy(), atol=0.01 * float(exact.max()))


def test_latents_under_another_prior_are_the_models_own():
    prior = cc.priors.Gaussian(torch.tensor([10.0]), torch.tensor([2.0]))
    vae = cc.VAE(nn.Linear(1, 2), 1, Gaussian(0.5), prior=prior)
    posterior = cc.condition(vae, cc.Evidence(torch.zeros(2), torch.zeros(2) > 0), seed=0)
    x, density = posterior.plot("latent")[0, 0].lines[0].get_data()
    exact = Normal(10.0, 2.0).log_prob(torch.from_numpy(np.asarray(x))).exp().numpy()
    np.testing.assert_allclose(density, exact, atol=0.02 * exact.max())


def test_a_bare_density_and_an_answer_without_its_model_have_latents(tmp_path):
    bare = cc.infer(mixture_target(), seed=0)
    figure_of(bare.plot())
    with pytest.raises(ValueError, match="kind='pictures', got that of a bare density"):
        bare.plot("pictures")
    posterior = cc.condition(
        linear(5, 2, 0.3), cc.Evidence(torch.zeros(5), torch.arange(5) < 2), seed=0
    )
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    figure_of(loaded.plot())
    loaded.target = loaded._flat_target = None  # as if its decoder had not been saved
    figure_of(loaded.plot("latent"))
    with pytest.raises(ValueError, match="loaded without its model"):
        loaded.plot("elements")


def test_discrete_latents_have_no_plane():
    vae = cc.VAE(nn.Linear(3, 4), 3, Bernoulli(), prior=cc.priors.Bernoulli(torch.zeros(3)))
    posterior = cc.condition(vae, cc.Evidence(torch.ones(4), torch.arange(4) < 2), seed=0)
    figure_of(posterior.plot())
    with pytest.raises(ValueError, match="expected continuous latents for kind='latent'"):
        posterior.plot("latent")


# ---- what else answers may have ------------------------------------------------------------------


def test_covariates_and_sums_are_no_obstacle():
    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 36)

        def forward(self, z, label):
            return self.layer(torch.cat([z, label], -1)).unflatten(-1, (6, 6))

    labels = torch.eye(2)
    vae = cc.VAE(Labelled(), 2, Gaussian(0.2), given=labels)
    evidence = cc.Evidence(torch.zeros(2, 6, 6), torch.eye(6) > 0, given=labels)
    posterior = cc.condition(vae, evidence, seed=0)
    figure_of(posterior.plot())
    figure_of(posterior.plot("latent", queries=1))
    assert "(2,) a query" in vae._repr_html_()
    assert posterior._repr_html_()
    vae = cc.VAE(nn.Sequential(nn.Linear(2, 36), nn.Unflatten(1, (6, 6))), 2, Gaussian(0.2))
    sums = cc.Evidence.linear(torch.ones(1, 6, 6), torch.tensor([3.0]), noise=0.1)
    posterior = cc.condition(vae, sums, seed=0)
    names = [label.get_text() for label in posterior.plot()[0, 0].get_xticklabels()]
    assert names[0] == "observed\nand 1 sum"
    assert "and 1 sum" in posterior._repr_html_()


def test_batches_of_any_shape_are_numbered_flat():
    posterior = cc.condition(
        linear(5, 2, 0.3), cc.Evidence(torch.zeros(2, 3, 5), torch.arange(5) < 2), seed=0
    )
    panels = posterior.plot(queries=[-1])
    assert panels[0, 0].get_title("right").startswith("query (1, 2): ")
    with pytest.raises(ValueError, match=r"queries from 0 to 5, .*, got 6"):
        posterior.plot(queries=6)
    with pytest.raises(ValueError, match="at least one query to draw, got none"):
        posterior.plot(queries=[])
    with pytest.raises(TypeError, match="numbers of queries, got True"):
        posterior.plot(queries=[True])
    with pytest.raises(ValueError, match="got an empty batch"):
        cc.condition(linear(5, 2, 0.3), cc.Evidence(torch.zeros(0, 5), torch.ones(5) > 0)).plot()


def test_wrong_arguments_are_named(digit_posterior):
    with pytest.raises(ValueError, match=r"a kind among .*, got 'pixels'; did you mean 'pictures'"):
        digit_posterior.plot("pixels")
    with pytest.raises(ValueError, match="model with a table for kind='columns'"):
        digit_posterior.plot("columns")
    with pytest.raises(ValueError, match="num >= 0, got -1"):
        digit_posterior.plot(num=-1)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 90"):
        digit_posterior.plot(level=90)


# ---- matplotlib ----------------------------------------------------------------------------------


def test_a_plot_takes_axes_and_returns_them(digit_posterior):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert digit_posterior.plot(ax=left) is left
    assert digit_posterior.plot("latent", queries=[0], axes=left) is left
    panels = digit_posterior.plot("latent", queries=[0, 1], axes=[left, right])
    assert panels.tolist() == [[left, right]]
    assert panels.figure is figure
    assert figure.axes == [left, right]
    with pytest.raises(ValueError, match=r"expected 2 axes, one for each panel \(1 x 2\), got 1"):
        digit_posterior.plot("latent", queries=[0, 1], ax=left)
    with pytest.raises(TypeError, match="expected matplotlib axes, got str"):
        digit_posterior.plot(axes=["left"])
    with pytest.raises(ValueError, match="ax or axes, got both"):
        digit_posterior.plot(ax=left, axes=[left])


def test_a_plot_changes_no_style_leaves_nothing_in_pyplot_and_can_be_freed(digit_posterior):
    import matplotlib.pyplot as plt

    before, figures = dict(mpl.rcParams), plt.get_fignums()
    state = digit_posterior._generator.get_state()
    for kind in ("pictures", "elements", "latent"):
        panels = digit_posterior.plot(kind)
        assert panels._repr_png_()[:4] == b"\x89PNG"
        assert isinstance(panels[0, 0], Axes)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures
    assert torch.equal(digit_posterior._generator.get_state(), state)
    freed = weakref.ref(panels.figure)
    del panels
    for _ in range(3):  # matplotlib's own caches go in a second round
        gc.collect()
    assert freed() is None


def test_the_same_seed_gives_the_same_picture(digit_posterior):
    one, other, third = (digit_posterior.plot(seed=seed) for seed in (0, 0, 1))
    sheets = [np.asarray(p[0, 0].images[0].get_array()) for p in (one, other, third)]
    assert np.array_equal(sheets[0], sheets[1])
    assert not np.array_equal(sheets[0], sheets[2])


def test_plots_is_public_and_loaded_when_it_is_used():
    assert cc.plots is sys.modules["crosscoding.plots"]
    assert "plots" in dir(cc)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cc.nothing  # noqa: B018
