"""Drawing: what stands in the pictures is what was measured, and bad input is told what to do."""

import subprocess
import sys
import types

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from scipy import stats

import grpo_jax as gj
from grpo_jax import plotting
from grpo_jax.sweeps.dataset import attributes


def sweep_like(runs=5, **change):
    """An array such as a sweep gives: two swept dimensions, seeds and iterations."""
    draw = np.random.default_rng(0)
    coordinates = {
        "kl_coef": [0.0, 0.04],
        "learning_rate": np.array([0.1 + 0.2, 1e-5, 1024.0]),
        "seed": np.arange(runs),
        "iteration": np.arange(10, 50, 10),
    }
    attrs = {"about": "entropy, nats", "long_name": "entropy", "units": "nats"}
    data = draw.normal(size=(2, 3, runs, 4)) + np.arange(3)[:, None, None]
    return xr.DataArray(data, coordinates, tuple(coordinates), "entropy", attrs | change)


def legend(axes):
    """Title and texts of the axes' legend."""
    found = axes.get_legend()
    assert isinstance(found, Legend)
    return found.get_title().get_text(), [text.get_text() for text in found.get_texts()]


def lines(axes):
    """What is drawn as lines, without the legend's own entries."""
    return [line for line in axes.lines if len(line.get_xdata())]


def ends(band):
    """Place -> least and greatest height of a shaded band."""
    corners = band.get_paths()[0].vertices
    return {at: (corners[corners[:, 0] == at, 1].min(), corners[corners[:, 0] == at, 1].max()) for at in
            np.unique(corners[:, 0])}  # fmt: skip


@pytest.mark.parametrize("band", [0.999, 0.9])
def test_a_curve_is_the_mean_in_students_interval(band):
    data = sweep_like().isel(kl_coef=0)
    axes = plotting.panels()
    plotting.curves(axes, data, over="seed", by="learning_rate", band=band)
    drawn = lines(axes)
    assert len(drawn) == len(axes.collections) == 3
    for i, (line, shade) in enumerate(zip(drawn, axes.collections, strict=True)):
        runs = data.isel(learning_rate=i).values
        np.testing.assert_array_equal(line.get_xdata(), [10, 20, 30, 40])
        np.testing.assert_allclose(line.get_ydata(), runs.mean(0), rtol=1e-12)
        low, high = stats.t.interval(band, 4, runs.mean(0), stats.sem(runs, 0))
        for at, bottom, top in zip([10, 20, 30, 40], low, high, strict=True):
            np.testing.assert_allclose(ends(shade)[at], (bottom, top), rtol=1e-10)


def test_a_band_of_runs_holds_their_central_share():
    data = sweep_like(runs=41).isel(kl_coef=0, learning_rate=0)
    axes = plotting.panels()
    plotting.curves(axes, data, band=0.5, band_of="runs")
    low, high = np.quantile(data.values, [0.25, 0.75], axis=0)
    found = ends(axes.collections[0])
    np.testing.assert_allclose([found[at] for at in (10, 20, 30, 40)], np.stack([low, high], 1), rtol=1e-12)


def test_runs_that_are_not_numbers_are_left_out_and_no_run_is_a_gap():
    data = sweep_like().isel(kl_coef=0, learning_rate=0).copy()
    data[0, 1] = np.nan
    data[:, 2] = np.nan
    data[1:, 3] = np.nan
    axes = plotting.panels()
    plotting.curves(axes, data)
    height = lines(axes)[0].get_ydata()
    np.testing.assert_allclose(height[:2], [data[:, 0].mean(), data[1:, 1].mean()])
    assert np.isnan(height[2])
    assert height[3] == data[0, 3]
    assert lines(axes)[0].get_markevery() == [3]  # alone between gaps: a line would not show it
    low, high = stats.t.interval(0.999, 3, data[1:, 1].mean(), stats.sem(data[1:, 1]))
    np.testing.assert_allclose(ends(axes.collections[0])[20], (low, high))
    assert 40 not in ends(axes.collections[0])


def test_two_dimensions_are_colours_and_line_styles():
    axes = plotting.panels()
    plotting.curves(axes, sweep_like(), by=("learning_rate", "kl_coef"))
    title, words = legend(axes)
    assert title == "learning rate η"
    assert words == ["0.3", "1e-5", "1024", "KL coefficient β", "0", "0.04"]
    styles = {(line.get_color(), line.get_linestyle()) for line in lines(axes)}
    assert styles == {(color, dash) for color in plotting.COLORS[:3] for dash in ("-", "--")}


def test_axes_are_named_by_metadata_and_a_users_name_stays():
    data = sweep_like().isel(kl_coef=0, learning_rate=0)
    axes = plotting.panels()
    axes.set_xlabel("mine")
    plotting.curves(axes, data)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mine", "entropy (nats)")
    bare = plotting.panels()
    plotting.curves(bare, data.drop_attrs().rename("grad_norm"))
    assert (bare.get_xlabel(), bare.get_ylabel()) == ("iteration", "grad norm")


def test_labels_and_colours_are_given_by_value():
    axes = plotting.panels()
    data = sweep_like().isel(kl_coef=0).astype(np.float32)
    data = data.assign_coords(learning_rate=np.float32(data.learning_rate))
    plotting.curves(axes, data, by="learning_rate", labels={0.3: "mine"}, colors={1024: "black"})
    assert legend(axes)[1][0] == "mine"
    assert [line.get_color() for line in lines(axes)][1:] == [plotting.COLORS[1], "black"]
    with pytest.raises(ValueError, match=r"labels names 0\.31; did you mean 0\.3"):
        plotting.curves(axes, data, by="learning_rate", labels={0.31: "mine"})


def test_values_in_any_order_make_one_line_from_left_to_right():
    data = sweep_like().isel(kl_coef=0, iteration=-1)
    axes = plotting.panels()
    plotting.curves(axes, data)
    np.testing.assert_array_equal(lines(axes)[0].get_xdata(), np.sort(data.learning_rate))
    means = data.mean("seed").sortby("learning_rate")
    np.testing.assert_allclose(lines(axes)[0].get_ydata(), means)


def test_a_swept_word_is_a_place_with_its_name():
    data = xr.DataArray([1.0, 2.0], {"algorithm": ["grpo", "trl"]}, ("algorithm",))
    axes = plotting.panels()
    plotting.curves(axes, data, x="algorithm")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["grpo", "trl"]
    assert not axes.collections
    assert lines(axes)[0].get_linestyle() == "None"  # nothing lies between two words
    assert lines(axes)[0].get_marker() == "o"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"kl_coef \(2\), learning_rate \(3\): name it in by \(now none\)"),
        ({"by": "learning_rate"}, r"what to do with kl_coef \(2\)"),
        ({"by": "learning_rat"}, "did you mean learning_rate"),
        ({"over": "sed"}, "did you mean seed"),
        ({"x": "iter", "by": "kl_coef"}, "did you mean iteration"),
        ({"by": ("kl_coef", "kl_coef")}, "'kl_coef' is used twice"),
        ({"by": ("kl_coef", "learning_rate", "seed")}, "tell two apart"),
        ({"band": 1.0}, "between 0 and 1"),
        ({"band_of": "run"}, "did you mean runs"),
        ({"style": "dashed"}, "must be one of -, --, :, -."),
        ({"over": ("seed", "iteration")}, "x could be any of kl_coef, learning_rate"),
    ],
)
def test_curves_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        plotting.curves(plotting.panels(), sweep_like(), **options)


def test_what_is_no_array_or_no_axes_is_refused():
    data = sweep_like()
    with pytest.raises(ValueError, match="draw one of its variables: entropy"):
        plotting.curves(plotting.panels(), data.to_dataset())
    with pytest.raises(ValueError, match=r"must be an xarray\.DataArray"):
        plotting.curves(plotting.panels(), data.values)
    with pytest.raises(ValueError, match=r"Axes from plotting.panels\(\) \(one of the tuple\)"):
        plotting.curves(plotting.panels(columns=2), data)


def test_a_sweeps_variables_say_what_they_are():
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=1, actions=2),
        task=gj.Questions(table=[[1.0, 0.0]]),
        method=gj.methods.grpo,
        optimizer=gj.SGD(learning_rate=0.1),
    )
    data = gj.sweep(config, {"kl_coef": [0.0, 0.04]}, seeds=3, iterations=4, progress=False)
    assert data.entropy.attrs == {
        "about": "entropy of whole outputs, nats, exact",
        "long_name": "entropy of whole outputs",
        "units": "nats",
    }
    axes = plotting.panels()
    plotting.curves(axes, data.entropy, over="seed", by="kl_coef")
    assert legend(axes) == ("KL coefficient β", ["0", "0.04"])
    assert axes.get_ylabel().replace("\n", " ") == "entropy of whole outputs (nats)"
    assert attributes("") == {}


def test_settings_of_the_user_stay_and_do_not_matter(tmp_path):
    before = dict(mpl.rcParams)
    axes = plotting.panels()
    plotting.curves(axes, sweep_like(), by=("learning_rate", "kl_coef"))
    (first,) = plotting.save(axes, tmp_path / "first.png")
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "xtick.labelsize": 30, "lines.linewidth": 9}):
        axes = plotting.panels()
        plotting.curves(axes, sweep_like(), by=("learning_rate", "kl_coef"))
        (second,) = plotting.save(axes, tmp_path / "second.png")
    assert first.read_bytes() == second.read_bytes()


def test_simulations_need_no_matplotlib():
    code = "import sys, grpo_jax; assert 'matplotlib' not in sys.modules; from grpo_jax import plotting; "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_are_equal_byte_for_byte_and_text_stays_text(tmp_path):
    for name in ("a", "b"):
        axes = plotting.panels()
        plotting.curves(axes, sweep_like(), by=("learning_rate", "kl_coef"))
        written = plotting.save(axes, tmp_path / "new" / name)
    assert written == (tmp_path / "new" / "b.png", tmp_path / "new" / "b.svg")
    for suffix in ("png", "svg"):
        assert (tmp_path / f"new/a.{suffix}").read_bytes() == (tmp_path / f"new/b.{suffix}").read_bytes()
    assert "learning rate η</text>" in (tmp_path / "new/a.svg").read_text("utf-8")
    with pytest.raises(ValueError, match=r"suffix '.jpg' of .* is none of .png, .svg, .pdf"):
        plotting.save(axes, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="must be a Figure or an Axes"):
        plotting.save("axes", tmp_path / "a")


def test_a_notebook_shows_a_figure():
    picture, shown = plotting.figure("column")._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert shown == {"width": 340, "height": 250}


def test_panels_and_figures():
    figure = plotting.figure("column", height=2)
    assert isinstance(figure, Figure)
    assert tuple(figure.get_size_inches()) == (3.4, 2)
    assert len(plotting.panels(figure, rows=2, columns=3, sharex=True)) == 6
    assert plotting.panels(columns=2)[0].figure.get_size_inches()[0] == 7.0
    for wrong, said in (
        ({"columns": 0}, "columns is 0"),
        ({"share_x": True}, "did you mean sharex"),
        ({"width": "colum"}, "did you mean column"),
        ({"height": -1.0}, "positive number of inches"),
    ):
        with pytest.raises(ValueError, match=said):
            plotting.panels(**wrong)


def test_theory_and_points_lie_over_the_data():
    axes = plotting.panels()
    plotting.curves(axes, sweep_like().isel(kl_coef=0), by="learning_rate")
    plotting.theory(axes, [10, 40], 0.5)
    plotting.points(axes, [10, 20], [1.0, np.nan], [0.5, np.nan], [2.0, np.nan], label="measured")
    assert axes.lines[-2].get_zorder() > max(line.get_zorder() for line in axes.lines[:-2])
    assert legend(axes)[1][-2:] == ["theory", "measured"]
    np.testing.assert_allclose(axes.containers[0].lines[2][0].get_segments()[0], [[10, 0.5], [10, 2.0]])
    for call, said in (
        (lambda: plotting.points(axes, [1], [1], low=[0]), "both its ends"),
        (lambda: plotting.points(axes, [1], [1], [2], [3]), "outside its bar"),
        (lambda: plotting.theory(axes, [1, 2], [1, 2, 3]), "2 places and y 3"),
        (lambda: plotting.theory(axes, [1, 2], 1, linewdth=3), "linewdth"),
        (lambda: plotting.theory(axes, [1, 2], 1, color="bluish"), "no colour"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_a_heatmap_shows_each_cell_at_its_place():
    data = sweep_like().isel(iteration=0)
    axes = plotting.panels()
    plotting.heatmap(axes, data, x="learning_rate", y="kl_coef", over="seed", annotate=True)
    np.testing.assert_allclose(axes.images[0].get_array(), data.mean("seed"))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "0.04"]
    assert axes.figure.axes[1].get_ylabel() == "entropy (nats)"
    centred = plotting.panels()
    plotting.heatmap(centred, data, x="kl_coef", y="learning_rate", over="seed", center=1.0)
    norm = centred.images[0].norm
    np.testing.assert_allclose((norm.vmin + norm.vmax) / 2, 1.0)
    for options, said in (
        ({}, r"what to do with seed \(5\)"),
        ({"over": "seed", "log": True, "center": 1.0}, "leave log and limits out"),
        ({"over": "seed", "limits": (2, 1)}, "the lower first"),
    ):
        with pytest.raises(ValueError, match=said):
            plotting.heatmap(plotting.panels(), data, x="kl_coef", y="learning_rate", **options)
    with pytest.raises(ValueError, match="needs positive numbers"):
        plotting.heatmap(plotting.panels(), -abs(data[..., 0]), x="kl_coef", y="learning_rate", log=True)


def test_a_phase_has_its_name_inside_or_beside():
    cells = np.zeros((30, 30))
    cells[:, 20:] = 7
    cells[0, 0] = 3
    data = xr.DataArray(cells, dims=("y", "x"))
    axes = plotting.panels()
    plotting.phases(axes, data, x="x", y="y", names={0: "stays", 7: "leaves", 3: "a corner", 5: "nowhere"})
    inside = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(inside) == {"stays", "leaves"}
    assert inside["stays"][0] < 19.5 < inside["leaves"][0]
    assert legend(axes)[1] == ["a corner"]
    with pytest.raises(ValueError, match="no name is given for 7; names has 0, 3"):
        plotting.phases(plotting.panels(), data, x="x", y="y", names={0: "stays", 3: "a corner"})


def row(value=None, low=None, high=None):
    """What an experiment's number looks like."""
    return types.SimpleNamespace(value=value, low=low, high=high)


def test_intervals_stand_in_rows():
    rows = {"first": row(0.5, 0.4, 0.7), "second": row(0.3), "third": row()}
    axes = plotting.panels()
    plotting.intervals(axes, rows, expected=0.45, margin=0.1, labels={"first": "one"}, colors="black")
    np.testing.assert_array_equal(axes.lines[1].get_xdata(), [0.4, 0.7])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one", "second", "third"]
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    np.testing.assert_allclose([box.x0, box.x1], [0.35, 0.55])
    each = plotting.panels()
    plotting.intervals(each, rows, expected={"second": 0.3}, margin={"second": 0.0})
    for wrong, said in (
        ({"rows": {}}, "at least one row"),
        ({"rows": {"a": 0.5}}, "'a' has no value, low, high"),
        ({"rows": {"a": row(0.5, 0.7, 0.4)}}, "low 0.7 above high 0.4"),
        ({"rows": rows, "expected": {"frist": 1.0}}, "did you mean first"),
        ({"rows": rows, "margin": 0.1}, "no expected value"),
        ({"rows": rows, "expected": 1, "margin": -0.1}, "not be negative"),
    ):
        with pytest.raises(ValueError, match=said):
            plotting.intervals(plotting.panels(), **wrong)


def test_a_simplex_has_its_answers_at_the_corners():
    axes = plotting.panels()
    path = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [np.nan, np.nan, np.nan]])
    best = np.array([1.0, 0.0, 0.0])
    plotting.simplex(axes, lambda p: best - p, {"run": path}, {"middle": [1 / 3] * 3}, density=5)
    np.testing.assert_allclose(axes.lines[1].get_xdata()[:2], [0.0, 0.5])
    np.testing.assert_allclose(axes.lines[1].get_ydata()[:2], [0.0, np.sqrt(3) / 2])
    np.testing.assert_allclose(axes.lines[3].get_xydata(), [[0.5, np.sqrt(3) / 6]])
    arrows = axes.collections[0]
    assert (arrows.U < 0).all()  # towards the lower left
    assert len(arrows.U) == 15
    for options, said in (
        ({"points": {"a": [0.5, 0.6, 0.1]}}, "no probabilities"),
        ({"paths": [[0.5, 0.5]]}, r"each must be \[n, 3\]"),
        ({"flow": lambda p: p[:, :2]}, r"flow gives \(78, 2\)"),
        ({"corners": "ab"}, "three answers"),
        ({"density": 1}, "at least 2"),
    ):
        with pytest.raises(ValueError, match=said):
            plotting.simplex(plotting.panels(), **options)


def test_ratios_outside_the_clip_are_counted():
    ratios = xr.DataArray([[0.5, 1.0, 1.1, np.nan], [1.5, 2.0, 0.0, 1.0]], dims=("entry", "token"))
    axes = plotting.panels()
    plotting.ratio_histogram(axes, ratios, low=0.2, high=0.28)
    assert legend(axes)[1] == ["below 0.8: 29 %", "above 1.28: 29 %"]
    heights = axes.patches[0].get_data().values
    np.testing.assert_allclose(heights.sum(), 1)
    weighted = plotting.panels()
    weights = xr.DataArray([1.0, 0.0], dims="entry")
    plotting.ratio_histogram(weighted, ratios, low=0.2, high=0.2, weights=weights)
    assert legend(weighted)[1] == ["below 0.8: 33 %", "above 1.2: 0 %"]
    for options, said in (
        ({"low": 1.5}, r"low is 1.5; it must be in \[0, 1\]"),
        ({"high": -0.1}, "distance from 1"),
        ({"weights": [1.0, 2.0, 3.0]}, "do not fit"),
        ({"ratios": [-1.0]}, "negative"),
    ):
        with pytest.raises(ValueError, match=said):
            plotting.ratio_histogram(plotting.panels(), **({"ratios": ratios} | options))


def test_everything_draws_one_run_and_nothing_but_nan():
    data = sweep_like(runs=1)
    for array in (data, data * np.nan):
        figure = plotting.figure()
        all_axes = plotting.panels(figure, rows=2, columns=4)
        plotting.curves(all_axes[0], array, by=("learning_rate", "kl_coef"), band_of="runs")
        plotting.curves(all_axes[1], array.isel(kl_coef=[0], learning_rate=[0], iteration=[0]))
        last = array.isel(iteration=-1)
        plotting.heatmap(all_axes[2], last, x="learning_rate", y="kl_coef", center=0.0, annotate=True)
        phases = (last * 0).isel(seed=0)
        plotting.phases(all_axes[3], phases, x="learning_rate", y="kl_coef", names=["one"])
        value = float(last[0, 0, 0])
        plotting.intervals(all_axes[4], {"a": row(value, value, value)}, expected=value, margin=0.0)
        plotting.simplex(all_axes[5], lambda p, value=value: p * value, [np.full((1, 3), value * 0 + 1 / 3)])
        plotting.ratio_histogram(all_axes[6], np.exp(last * 0), low=0.2, high=0.2)
        plotting.points(all_axes[7], [1.0], [value], [value], [value])
        plotting.theory(all_axes[7], [1.0], [value])
        figure.draw_without_rendering()
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 7
