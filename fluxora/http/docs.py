"""GET /docs: the OpenAPI document as a page, and the files that the page is made of.

The viewer is vendored (static/docs/swagger-ui/VENDORED.md).
"""

from __future__ import annotations

from fluxora.errors import NotFound
from fluxora.http import pages
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request

# 2.4 MB in all, read once: a file that is missing from an installation stops the start, not a request.
_PAGE = pages.page("docs/index.html")
_FILES = {
    "start.js": pages.small("docs/start.js", pages.JAVASCRIPT),
    "swagger-ui-bundle.js": pages.large("docs/swagger-ui/swagger-ui-bundle.js", pages.JAVASCRIPT),
    "swagger-ui.css": pages.large("docs/swagger-ui/swagger-ui.css", pages.CSS),
    "swagger-ui-bundle.js.LICENSE.txt": pages.small("docs/swagger-ui/swagger-ui-bundle.js.LICENSE.txt", pages.TEXT),
    "LICENSE": pages.small("docs/swagger-ui/LICENSE", pages.TEXT),
    "NOTICE": pages.small("docs/swagger-ui/NOTICE", pages.TEXT),
}


def page(request: Request, _backend: Backend) -> Reply:
    """The page; what it shows is /openapi.json."""
    return pages.answer(request, _PAGE)


def asset(request: Request, _backend: Backend) -> Reply:
    """A file of the page.

    Raises:
        NotFound: the page has no such file.
    """
    file = _FILES.get(request.params["file"])
    if file is None:
        raise NotFound("The documentation has no such file")
    return pages.answer(request, file)
