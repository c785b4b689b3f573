"""What mkdocs runs while it builds: pages and tables that are generated from the code, formulas, the notebook.

A page asks for a generated piece with a line of its own, `<!-- generated: NAME ARGUMENTS -->`. What has no hand-written
page (API, command line, a method without notes) becomes one as a whole. Nothing here is typed that the code knows.
"""

import re
from collections.abc import Callable
from typing import Any

import api_pages
import cli_page
import comparison_tables
import data_page
import mathml
import measurements
import method_pages
import notebook_page
import recipe_pages
import task_page
from mkdocs.structure.files import File, Files

MARK = re.compile(r"^<!-- generated: ([\w-]+)((?: [\w./-]+)*) -->$", re.MULTILINE)

PIECES: dict[str, Callable[..., str]] = {
    "cli": cli_page.every_verb,
    "data-formats": data_page.formats,
    "data-columns": data_page.columns,
    "grid-keys": recipe_pages.grid_keys,
    "measured-adapters": measurements.four_methods,
    "measured-comparisons": comparison_tables.comparisons,
    "measured-start": measurements.start_and_reload,
    "measured-step": measurements.step_time,
    "method": method_pages.facts,
    "methods-table": method_pages.table_of_methods,
    "notebook": notebook_page.page,
    "recipe-keys": recipe_pages.keys,
    "recipe-other-names": recipe_pages.other_names,
    "recipes": recipe_pages.shipped,
    "tasks": task_page.tasks,
    "verb": cli_page.verb,
}


def generated_pages() -> dict[str, str]:
    """Pages that are generated as a whole: path below docs to Markdown."""
    return {
        **method_pages.pages_without_notes(),
        **api_pages.pages(),
        **recipe_pages.grids_page(),
        "reference/cli.md": cli_page.page(),
        "notebooks/first_adapter.md": "# A first adapter, step by step\n\n<!-- generated: notebook first_adapter -->\n",
    }


def filled(markdown: str) -> str:
    """Markdown with each mark replaced by what it asks for.

    Raises:
        KeyError: a mark that names nothing.
    """
    return MARK.sub(lambda mark: PIECES[mark[1]](*mark[2].split()), markdown)


def on_config(config: Any) -> Any:
    """Add a line to the navigation for each method and each room of the package, and for the grids."""
    for entry in config.nav:
        for title, pages in entry.items():
            if title == "Methods":
                pages.extend({name: path} for name, path in method_pages.navigation().items())
            elif title == "API":
                pages.extend({name: path} for name, path in api_pages.navigation().items())
            elif title == "Reference":
                pages.extend({"Grids": path} for path in recipe_pages.grids_page())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page asks for."""
    return filled(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML and tables into what a keyboard can scroll."""
    return mathml.scrollable(mathml.formulas(html))


def on_post_page(output: str, **_: Any) -> str:
    """Give the theme's search dialog a name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')
