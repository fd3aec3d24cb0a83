"""Tables of text, as every benchmark prints them."""


def format_table(rows: list[dict]) -> str:
    """Lay out rows that have the same keys as aligned columns, with the keys as headings."""
    columns = {key: [key, *(str(row[key]) for row in rows)] for key in rows[0]}
    aligned = []
    for cells in columns.values():
        width = max(len(cell) for cell in cells)
        aligned.append([cell.rjust(width) for cell in cells])

    lines = zip(*aligned, strict=True)
    return "\n".join("  ".join(line) for line in lines)
