"""Page: the report as one HTML file that needs nothing beside it.

Notable: no script, no network, no clock: equal runs give equal pages. What came from logs is escaped.
"""

from __future__ import annotations

from pathlib import Path

from sparsefeed.errors import ToolError
from sparsefeed.workflows.workspace import Workspace

__all__ = ["write_report"]


def write_report(workspace: Workspace) -> Path:
    """Write `workspace.report`, beside and renamed; a stage that has not run is said by its section.

    Returns:
        The page's path.

    Raises:
        DataError, SpecError, BundleError, ReleaseError: a file of the run is damaged; the message names it.
        ToolError: the extra `report` is not installed.
    """
    from sparsefeed.workflows.report.run import read_run

    run = read_run(workspace)
    try:
        import jinja2

        from sparsefeed.workflows.report import sections, verdict
    except ModuleNotFoundError as error:
        raise ToolError(f"report: {error.name} is not installed; pip install 'sparsefeed[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        run=run, summary=verdict.summary(run), figures=verdict.figures(run), sections=sections.all_sections(run)
    )
    beside = workspace.report.with_name(f".{workspace.report.name}.partial")
    beside.write_text(page, "utf-8")
    beside.replace(workspace.report)
    return workspace.report
