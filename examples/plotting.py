"""How the pictures of the examples look: one colour a method, and texts at the ends of lines instead of legends.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind people can tell apart. There
are fewer of them than methods, so relatives share one: what starts from a dense model has the recipe's, and variants of
an optimizer that optimizer's. Methods with masks share theirs with optimizers that are not drawn as lines. In a picture
of one method alone they tell its runs apart.
"""

import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"

# Method → (name, colour). The paper's RDA starts from random weights, as MRDA does.
METHODS = {
    "dense": ("dense SGD (σ 0)", BLACK),
    "sgd": ("SGD", BLACK),
    "recipe": ("the recipe", BLUE),
    "recipe_0.98": ("the recipe, σ 0.98", BLUE),
    "fine_tuning": ("the recipe, fine-tuning", BLUE),
    "channels": ("whole channels", BLUE),
    "channels_together": ("channels together", BLUE),
    "channels_by_cost": ("channels together, by multiply-adds", GREEN),
    "channels_by_kernel": ("channels kernel by kernel", VERMILION),
    "l1_threshold": ("ℓ1 + threshold, fine-tuned", GREEN),
    "tfmot": ("TensorFlow Model Optimization", ORANGE),
    "gmp": ("global magnitude pruning", VERMILION),
    "rigl": ("RigL", PURPLE),
    "acdc": ("AC/DC", SKY),
    "mrda": ("MRDA", VERMILION),
    "rda": ("RDA", VERMILION),
    "mrda_cosine": ("MRDA, cosine rate", VERMILION),
    "prox_sgd": ("prox-SGD", PURPLE),
    "prox_sgd_momentum": ("prox-SGD, momentum", PURPLE),
    "sqrt_prox_sgd": ("√t-prox-SGD", SKY),
    "sda": ("SDA", GREY),
    "rmda": ("RMDA", GREY),
    "ftrl": ("Ftrl", GREY),
}
RUNS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)  # of one method
WIDTH = 8  # inches of a picture that a README shows 800 pixels wide
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": "#E6E6E6",
}


def name(method):
    """What a method is called in pictures; `method` as in the results, with hyphens or underscores."""
    return METHODS[method.replace("-", "_")][0]


def colour(method, white=0.0):
    """The colour of a method, with a share of white in it: settings of one method are its shades."""
    code = METHODS[method.replace("-", "_")][1]
    return tuple(part + white * (1 - part) for part in matplotlib.colors.to_rgb(code))


def figure(height):
    """A figure as wide as a README and so many inches high."""
    plt.rcParams.update(STYLE)
    return plt.figure(figsize=(WIDTH, height), layout="constrained")


def line(axes, x, values, colour, text="", style="-"):
    """Draw the means of `values`, a list at each of `x`, in a band of one standard deviation to both sides.

    `save` writes the text at its end.
    """
    means = [statistics.mean(of) for of in values]
    marker = "o" if len(means) < 12 and style == "-" else None
    (drawn,) = axes.plot(x, means, style, color=colour, marker=marker, markersize=4)
    drawn.set_gid(text)
    deviations = [statistics.stdev(of) if len(of) > 1 else 0 for of in values]
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def bars(axes, values, texts, title):
    """Draw a dict of name → number as bars from the top, the first in grey: it is what the others are compared with."""
    drawn = axes.barh(list(values), list(values.values()), color=[GREY, *[BLUE] * (len(values) - 1)])
    axes.bar_label(drawn, texts, padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlim=(0, 1.25 * max(values.values())))
    axes.grid(visible=False, axis="y")


def apart(places, gap, lowest):
    """Places moved as little as possible (least squares) until no two are closer than `gap`, none below `lowest`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks = []  # sum and number of neighbours that move together, as if texts had no height
    for rank, index in enumerate(order):
        blocks.append((places[index] - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            (one, several), (other, more) = blocks.pop(), blocks.pop()
            blocks.append((one + other, several + more))
    means = [total / number for total, number in blocks for _ in range(number)]
    return {index: max(means[rank], lowest) + rank * gap for rank, index in enumerate(order)}


def save(figure, file, command):
    """Write the texts of lines and the command below, save the figure, and close it.

    Texts stand beside their axes; that of a line which ends before others do, above or below its end.
    """
    figure.supxlabel(command, fontsize=8, color=GREY)
    figure.canvas.draw()  # places the axes, which texts beside them then make narrower, not lower
    for axes in figure.axes:
        lines = [drawn for drawn in axes.get_lines() if drawn.get_gid()]
        ends = [(drawn.get_xdata()[-1], drawn.get_ydata()[-1]) for drawn in lines]
        places = [axes.transAxes.inverted().transform(axes.transData.transform(end)) for end in ends]
        last = [index for index, end in enumerate(ends) if end[0] == max(x for x, _ in ends)]
        point = figure.dpi / 72 / axes.bbox.height
        moved = apart([places[index][1] for index in last], 12 * point, 4 * point)
        texts = {}
        for index, (x, y) in enumerate(places):
            up = y < 0.6  # leaves room above
            texts[index] = (x, y + 0.28 if up else y - 0.28), "center", (0.5, 0 if up else 1)
        texts |= {index: ((1.05, moved[rank]), "left", (0, 0.5)) for rank, index in enumerate(last)}
        for index, (place, side, start) in texts.items():
            colour = lines[index].get_color()
            axes.annotate(
                lines[index].get_gid(),
                ends[index],
                place,
                textcoords="axes fraction",
                ha=side,
                va="center",
                color=colour,
                arrowprops={"arrowstyle": "-", "linestyle": ":", "color": colour, "relpos": start},
                annotation_clip=False,
            )
    figure.savefig(file, dpi=120)
    plt.close(figure)
