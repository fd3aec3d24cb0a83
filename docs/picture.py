"""Draw the model into docs/model.svg, the README's picture: `python -m docs.picture`.

One layer of two levels, 1x and 4x, over a short text; in colour all that one position reads to predict the next byte.
The picture has its own background, light or dark as the reader's system is, and takes the reader's own fonts.
"""

from pathlib import Path

from utils.files import write_text

TEXT, HERE = "The cat sits.", 9  # and the position that is followed from its bytes to its prediction
COMPRESSION = STRIDE = 4  # of level 4x, which sees all of its outputs so far
WINDOW = 4  # keys that a position of level 1x sees
POSITIONS = range(len(TEXT) - 1)

WIDTH, HEIGHT, LEFT, COLUMN = 584, 652, 177, 33  # pixels; 350 on a phone, where the smallest letters are 8 high
BYTES, COARSE, FINE, MERGE, PREDICT = 86, 210, 310, 394, 520  # middles of the rows
HALF, BAR = 13, 17  # half of a token's side, and of a coarse one's height
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


def seen(output: int) -> range:
    """The bytes that an output k of level 4x is made of: ks - c + 1 … ks."""
    return range(max(0, output * STRIDE - COMPRESSION + 1), output * STRIDE + 1)


def read(position: int) -> int:
    """The output of level 4x that is merged into a position t: ⌊t/s⌋."""
    return position // STRIDE


def keys(position: int) -> range:
    """The positions that one of level 1x attends to, itself included."""
    return range(max(0, position - WINDOW + 1), position + 1)


def at(position: float) -> float:
    """The middle of a position's column."""
    return LEFT + COLUMN * position


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "", corner: int = 5) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{corner}" class="{kind}"/>'


def path(d: str, kind: str = "") -> str:
    return f'<path d="{d}" class="{kind}"/>'


def token(position: int, y: float, letter: str, kind: str = "") -> str:
    square = box(at(position) - HALF, y - HALF, 2 * HALF, 2 * HALF, kind)
    return square + text(at(position), y + 5.5, letter.replace(" ", "␣"), "letter middle")


def hang(start: float, end: float, y: float, kind: str) -> str:
    """An arc of attention below a row, from a query to a key."""
    depth = y + 12 + 0.11 * (start - end)
    return path(f"M{start:g} {y:g}C{start:g} {depth:g} {end:g} {depth:g} {end:g} {y:g}", kind)


def bar(output: int) -> tuple[float, float]:
    """Left and right of an output of level 4x: it reaches as far as the positions that read it."""
    readers = [t for t in POSITIONS if read(t) == output]
    return at(readers[0]) - HALF, at(readers[-1]) + HALF + 3


def draw() -> str:
    """The picture as the text of an SVG file."""
    outputs, now = range(read(POSITIONS[-1]) + 1), read(HERE)
    cards = [box(10 + d, 158 + d, WIDTH - 32, 294, "card", 12) for d in (12, 6, 0)]
    parts = [box(0.75, 0.75, WIDTH - 1.5, HEIGHT - 1.5, corner=12), *cards]

    # -- lines, those in colour last: bytes to both levels, levels to merges, merges to predictions, and attention
    for k in outputs:
        left, right, end = at(seen(k)[0]) - HALF, at(seen(k)[-1]) + HALF, at(k * STRIDE) - HALF
        top, bottom, middle = BYTES + HALF + 4, COARSE - BAR, (BYTES + COARSE) // 2
        d = f"M{left:g} {top}C{left:g} {middle} {end:g} {middle} {end:g} {bottom}H{right:g}V{top}z"
        parts.append(path(d, "funnel on" if k <= now else "funnel"))
    for t in sorted(POSITIONS, key=lambda t: (t == HERE, t in keys(HERE))):
        here, side = t == HERE, at(t) + HALF + 3
        parts.append(path(f"M{at(t):g} {BYTES + HALF}V{FINE}", "fine" if t in keys(HERE) else ""))
        parts.append(path(f"M{at(t):g} {FINE}V{MERGE}", "fine" if here else ""))
        parts.append(
            path(f"M{side:g} {COARSE}V{MERGE - 22}Q{side:g} {MERGE} {at(t):g} {MERGE}", "coarse" if here else "")
        )
        parts.append(path(f"M{at(t):g} {MERGE}V{PREDICT}", "merge" if here else ""))
    middles = [at(STRIDE * k + 1.75) for k in range(now + 1)]
    parts += [hang(middles[-1], middle, COARSE + BAR, "coarse") for middle in middles[:-1]]
    parts += [hang(at(HERE), at(t), FINE + HALF, "fine") for t in keys(HERE)[:-1]]

    # -- tokens
    for t in POSITIONS:
        parts.append(text(at(t), BYTES - HALF - 7, str(t), "index middle on" if t == HERE else "index middle"))
        parts.append(token(t, BYTES, TEXT[t]))
        parts.append(token(t, FINE, TEXT[t], "fine" if t in keys(HERE) else ""))
        parts.append(f'<circle cx="{at(t):g}" cy="{MERGE}" r="9" class="{"merge" if t == HERE else ""}"/>')
        parts.append(path(f"M{at(t) - 5:g} {MERGE}h10m-5-5v10", "merge" if t == HERE else ""))
        parts.append(token(t, PREDICT, TEXT[t + 1], "merge" if t == HERE else ""))
    for k in outputs:
        left, right = bar(k)
        parts.append(box(left, COARSE - BAR, right - left, 2 * BAR, "coarse" if k <= now else ""))
        first, last = seen(k)[0], seen(k)[-1]
        which = f"bytes {first} … {last}" if first < last else f"byte {first}"
        parts.append(text(left + 10, COARSE + 4.5, str(k), "index"))
        parts.append(text((left + right) / 2 + 7, COARSE + 5, which, "middle on"))

    # -- words
    for y, name, more in (
        (BYTES, "bytes", "one token each"),
        (BYTES + 45, "compress", f"stride {STRIDE}, causal"),
        (COARSE, f"level {COMPRESSION}×", "wide, all keys"),
        (FINE, "level 1×", f"narrow, {WINDOW} keys"),
        (MERGE, "merge", f"t reads ⌊t/{STRIDE}⌋"),
        (PREDICT, "predict", "the next byte"),
    ):
        parts += [text(26, y - 2, name, "name"), text(26, y + 16, more)]
    parts.append(text(26, 34, f"In colour: all that position {HERE} reads in one layer to predict byte {HERE + 1}"))
    parts.append(text(26, 438, "× depth", "name"))
    for i, line in enumerate(
        (
            "A layer is a block in each level (token shift → attention →",
            "token shift → feed-forward), then the merge, which adds what",
            "all levels say to the one that predicts.",
        )
    ):
        parts.append(text(26, 582 + 23 * i, line))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    title = "One layer of a model with levels of 1x and 4x, and what one position of it reads"
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", *parts, "</svg>\n"])


if __name__ == "__main__":
    write_text(Path(__file__).with_name("model.svg"), draw())
