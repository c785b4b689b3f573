"""LaTeX formulas become MathML while the site is built, so that a page needs no script and no font for them."""

import html as entities
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def formulas(html: str) -> str:
    """What arithmatex has marked as LaTeX, as MathML."""
    return FORMULA.sub(_one, html)


def _one(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    made = convert(entities.unescape(found[3]).strip(), display=display)
    return (
        made
        if display == "inline"
        else f'<div class="formula" tabindex="0" role="group" aria-label="formula">{made}</div>'
    )


def scrollable(html: str) -> str:
    """Code that is wider than its page can be scrolled with the keyboard, as WCAG 2.1.1 asks for."""
    return html.replace("<pre><span></span><code>", '<pre tabindex="0"><span></span><code>').replace(
        "<pre><code", '<pre tabindex="0"><code'
    )
