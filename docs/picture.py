"""Draw docs/model.svg, the README's picture of the model: `python -m docs.picture`.

The picture shows one layer of a model with levels 1x and 4x over a short text. Everything that one position reads to
predict the next byte is in colour. The picture is light or dark as the reader's system is, and uses its fonts.
"""

from pathlib import Path

from utils.files import write_text

TEXT = "The cat sits."
FOLLOWED = 9  # the position whose inputs and prediction are in colour
COMPRESSION = STRIDE = 4  # level 4x attends to all of its outputs so far
WINDOW = 4  # keys that a position of level 1x attends to, itself included
POSITIONS = range(len(TEXT) - 1)

# Sizes in pixels. A phone shows the picture 350 pixels wide, and the smallest letters are then 8 pixels high.
WIDTH, HEIGHT = 584, 652
LEFT = 177  # middle of the column of position 0
COLUMN = 33  # distance between columns
# Middle of each row.
BYTES = 86
COARSE = 210
FINE = 310
MERGE = 394
PREDICT = 520
HALF_TOKEN = 13  # half of a token's side
HALF_BAR = 17  # half of the height of an output of level 4x
STYLE = """
svg{--paper:#fff;--card:#f6f8fa;--ink:#1f2328;--soft:#59636e;--line:#c4ccd4;
--fine:#0969da;--fine-pale:#ddf0ff;--coarse:#bc4c00;--coarse-pale:#ffe3cc;--merge:#1a7f37;--merge-pale:#d2f5da}
@media(prefers-color-scheme:dark){svg{--paper:#0d1117;--card:#161b22;--ink:#f0f6fc;--soft:#9da7b3;--line:#444c56;
--fine:#58a6ff;--fine-pale:#16335c;--coarse:#f0883e;--coarse-pale:#51300f;--merge:#56d364;--merge-pale:#143f22}}
text{font:15.5px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft)}
.name{font-size:17px;font-weight:600;fill:var(--ink)}
.middle{text-anchor:middle}.index{font-size:13.5px}text.on{fill:var(--ink)}
.letter{font:16px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--ink)}
rect,circle{fill:var(--paper);stroke:var(--line);stroke-width:1.5}.card{fill:var(--card)}
path{fill:none;stroke:var(--line);stroke-width:1.3}
path.fine{stroke:var(--fine)}path.coarse{stroke:var(--coarse)}path.merge{stroke:var(--merge)}
path.fine,path.coarse,path.merge{stroke-width:2.4;stroke-linecap:round}
rect.fine{fill:var(--fine-pale);stroke:var(--fine)}rect.coarse{fill:var(--coarse-pale);stroke:var(--coarse)}
rect.merge,circle.merge{fill:var(--merge-pale);stroke:var(--merge)}
path.funnel{fill:var(--line);fill-opacity:.3;stroke:none}path.funnel.on{fill:var(--coarse);fill-opacity:.28}
"""


# -- inputs of the model; the tests compare these functions with the model itself


def bytes_of_output(k: int) -> range:
    """The bytes that output k of level 4x is computed from: ks - c + 1 … ks, for compression c and stride s."""
    return range(max(0, k * STRIDE - COMPRESSION + 1), k * STRIDE + 1)


def output_merged_into(position: int) -> int:
    """The output of level 4x that is merged into position t: ⌊t/s⌋."""
    return position // STRIDE


def keys_of(position: int) -> range:
    """The positions that a position of level 1x attends to, itself included."""
    return range(max(0, position - WINDOW + 1), position + 1)


OUTPUTS = range(output_merged_into(POSITIONS[-1]) + 1)
LAST_READ = output_merged_into(FOLLOWED)  # the followed position reads outputs 0 … LAST_READ


# -- SVG elements; `kind` is a class of STYLE


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "", corner: int = 5) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner}" class="{kind}"/>'


def path(d: str, kind: str = "") -> str:
    return f'<path d="{d}" class="{kind}"/>'


def column(position: float) -> float:
    """Middle of a position's column."""
    return LEFT + COLUMN * position


def bar_edges(k: int) -> tuple[float, float]:
    """Left and right edge of output k of level 4x, drawn above all positions that it is merged into."""
    readers = [t for t in POSITIONS if output_merged_into(t) == k]
    return column(readers[0]) - HALF_TOKEN, column(readers[-1]) + HALF_TOKEN + 3


def token(position: int, y: float, letter: str, kind: str = "") -> str:
    x = column(position)
    square = box(x - HALF_TOKEN, y - HALF_TOKEN, 2 * HALF_TOKEN, 2 * HALF_TOKEN, kind)
    return square + text(x, y + 5.5, letter.replace(" ", "␣"), "letter middle")


def attention_arc(query: float, key: float, y: float, kind: str) -> str:
    """An arc below a row, from the x of a query to the x of a key."""
    depth = y + 12 + 0.11 * (query - key)
    return path(f"M{query:g} {y:g}C{query:g} {depth:g} {key:g} {depth:g} {key:g} {y:g}", kind)


def funnel(k: int) -> str:
    """The area between an output of level 4x and the bytes that it is computed from."""
    sources = bytes_of_output(k)
    left = column(sources[0]) - HALF_TOKEN
    right = column(sources[-1]) + HALF_TOKEN
    bar_left = column(k * STRIDE) - HALF_TOKEN
    top = BYTES + HALF_TOKEN + 4
    bottom = COARSE - HALF_BAR
    middle = (BYTES + COARSE) // 2
    d = f"M{left:g} {top}C{left:g} {middle} {bar_left:g} {middle} {bar_left:g} {bottom}H{right:g}V{top}z"
    return path(d, "funnel on" if k <= LAST_READ else "funnel")


# -- the picture in layers, from back to front


def draw_lines() -> list[str]:
    """Lines from bytes to both levels, from levels to merges, from merges to predictions, and attention."""
    parts = [funnel(k) for k in OUTPUTS]

    # Lines in colour come last, so that they are on top.
    for t in sorted(POSITIONS, key=lambda t: (t == FOLLOWED, t in keys_of(FOLLOWED))):
        x = column(t)
        side = x + HALF_TOKEN + 3
        followed = t == FOLLOWED
        bend = f"M{side:g} {COARSE}V{MERGE - 22}Q{side:g} {MERGE} {x:g} {MERGE}"
        parts.append(path(f"M{x:g} {BYTES + HALF_TOKEN}V{FINE}", "fine" if t in keys_of(FOLLOWED) else ""))
        parts.append(path(f"M{x:g} {FINE}V{MERGE}", "fine" if followed else ""))
        parts.append(path(bend, "coarse" if followed else ""))
        parts.append(path(f"M{x:g} {MERGE}V{PREDICT}", "merge" if followed else ""))

    *earlier, query = [column(STRIDE * k + 1.75) for k in range(LAST_READ + 1)]
    for key in earlier:
        parts.append(attention_arc(query, key, COARSE + HALF_BAR, "coarse"))
    for t in keys_of(FOLLOWED)[:-1]:
        parts.append(attention_arc(column(FOLLOWED), column(t), FINE + HALF_TOKEN, "fine"))
    return parts


def draw_tokens() -> list[str]:
    """Bytes, tokens of level 1x, merges, predictions, and outputs of level 4x."""
    parts = []
    for t in POSITIONS:
        x = column(t)
        followed = t == FOLLOWED
        merge = "merge" if followed else ""
        parts.append(text(x, BYTES - HALF_TOKEN - 7, str(t), "index middle on" if followed else "index middle"))
        parts.append(token(t, BYTES, TEXT[t]))
        parts.append(token(t, FINE, TEXT[t], "fine" if t in keys_of(FOLLOWED) else ""))
        parts.append(f'<circle cx="{x:g}" cy="{MERGE}" r="9" class="{merge}"/>')
        parts.append(path(f"M{x - 5:g} {MERGE}h10m-5-5v10", merge))
        parts.append(token(t, PREDICT, TEXT[t + 1], merge))
    for k in OUTPUTS:
        left, right = bar_edges(k)
        first, last = bytes_of_output(k)[0], bytes_of_output(k)[-1]
        sources = f"bytes {first} … {last}" if first < last else f"byte {first}"
        parts.append(box(left, COARSE - HALF_BAR, right - left, 2 * HALF_BAR, "coarse" if k <= LAST_READ else ""))
        parts.append(text(left + 10, COARSE + 4.5, str(k), "index"))
        parts.append(text((left + right) / 2 + 7, COARSE + 5, sources, "middle on"))
    return parts


def draw_words() -> list[str]:
    """The names of the rows, the heading and the explanation."""
    parts = []
    for y, name, details in (
        (BYTES, "bytes", "one token each"),
        (BYTES + 45, "compress", f"stride {STRIDE}, causal"),
        (COARSE, f"level {COMPRESSION}×", "wide, all keys"),
        (FINE, "level 1×", f"narrow, {WINDOW} keys"),
        (MERGE, "merge", f"t reads ⌊t/{STRIDE}⌋"),
        (PREDICT, "predict", "the next byte"),
    ):
        parts.append(text(26, y - 2, name, "name"))
        parts.append(text(26, y + 16, details))

    heading = f"In colour: all inputs of position {FOLLOWED} in one layer to predict byte {FOLLOWED + 1}"
    parts.append(text(26, 34, heading))
    parts.append(text(26, 438, "× depth", "name"))
    explanation = (
        "A layer is a block in each level (token shift → attention →",
        "token shift → feed-forward) and then the merge, which adds a",
        "projection of all levels to the level that predicts.",
    )
    for i, line in enumerate(explanation):
        parts.append(text(26, 582 + 23 * i, line))
    return parts


def draw() -> str:
    """The picture as the text of an SVG file."""
    frame = box(0.75, 0.75, WIDTH - 1.5, HEIGHT - 1.5, corner=12)
    cards = [box(10 + shift, 158 + shift, WIDTH - 32, 294, "card", 12) for shift in (12, 6, 0)]  # one for each layer
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    title = "<title>One layer of a model with levels 1x and 4x, and all inputs of one position</title>"
    style = f"<style>{STYLE}</style>"
    parts = [head, title, style, frame, *cards, *draw_lines(), *draw_tokens(), *draw_words(), "</svg>\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    write_text(Path(__file__).with_name("model.svg"), draw())
