"""Small PDFs, made by hand."""

from __future__ import annotations


def pdf(*texts: str, script: str = "", link: str = "") -> bytes:
    """A PDF with a page for each text. Viewers that run scripts run ``script`` when they open it; ``link`` is the
    address of a link on each page."""
    count = len(texts)
    kids = " ".join(f"{4 + 3 * number} 0 R" for number in range(count))
    action = f"/OpenAction<</S/JavaScript/JS({_quoted(script)})>>" if script else ""
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{action}>>",
        f"<</Type/Pages/Count {count}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(texts):
        drawn = f"BT /F1 40 Tf 40 700 Td ({_quoted(text)}) Tj ET"
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
            f"/Contents {5 + 3 * number} 0 R/Annots[{6 + 3 * number} 0 R]>>",
            f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream",
            f"<</Type/Annot/Subtype/Link/Rect[0 0 612 792]/A<</S/URI/URI({_quoted(link)})>>>>",
        ]
    data, places = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{one}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode()


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
