"""The site mirrors the repository: READMEs, pictures and these pages keep their paths, so a link works in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(file.parent.relative_to(ROOT) for file in ROOT.glob("packages/*/pyproject.toml"))
PAGES = {
    "How results are measured": "docs/pages/measuring.md",
    "How to add a package": "docs/pages/adding.md",
}


def on_config(config: MkDocsConfig) -> None:
    """Overview, the packages that are found, the pages."""
    packages = [{folder.name: f"{folder}/README.md"} for folder in PACKAGES]
    config.nav = [{"Overview": "README.md"}, {"Packages": packages}, *({title: path} for title, path in PAGES.items())]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Put every file of the site under its path in the repository."""
    for page in files.documentation_pages():
        files.remove(page)
    paths = ["README.md", "LICENSE", *PAGES.values()]
    for folder in PACKAGES:
        pictures = [found for kind in ("png", "svg", "jpg") for found in (ROOT / folder).glob(f"docs/**/*.{kind}")]
        paths += [f"{folder}/README.md", *(str(picture.relative_to(ROOT)) for picture in pictures)]
    for path in paths:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Whatever a page loads must come from the site itself."""
    if found := re.search(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^\s"'>]*""", output):
        raise PluginError(f"{page.file.src_uri} loads something from outside: {found[0]}")
