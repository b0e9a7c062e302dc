"""`make docs` builds the documentation, and a mistake in it is an error."""

import shutil
from pathlib import Path

import pytest

from scripts.built_site import problems_of
from scripts.docs_site import BrokenPageError, Pages, build, main
from tests.packaging.conftest import ROOT

FILES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".env.example", "docker-compose.yaml"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what the site is made from."""
    for name in ("docs", "example_dags"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in [*FILES, "benchmarks/README.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "airflow_provider_qwenimage").symlink_to(ROOT / "airflow_provider_qwenimage")
    return tmp_path


def add(file: Path, text: str) -> None:
    file.write_text(f"{file.read_text()}\n{text}\n")


@pytest.mark.slow
def test_the_site_has_every_page_the_reference_and_the_code_of_the_examples(repository: Path) -> None:
    assert main(repository) == 0
    site = repository / "build" / "docs" / "site"
    assert "text-to-image API" in (site / "index.html").read_text()
    assert 'id="dag-files-for-airflow-2"' in (site / "versions.html").read_text()
    operators = (site / "reference" / "operators.html").read_text()
    assert 'id="airflow_provider_qwenimage.operators.QwenImageGenerateOperator"' in operators
    assert "max_in_flight" in operators
    assert "qwenimage_batch" in (site / "how-to" / "batch.html").read_text()
    assert "services:" in (site / "files" / "docker-compose.yaml.txt").read_text()
    # The loaded files of the theme, not only links to them.
    assert list(site.glob("assets/**/*.css"))
    assert list(site.glob("assets/**/*.js"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    ["[a missing anchor](connection.md#nowhere)", "[an unknown class][airflow_provider_qwenimage.hooks.Nothing]"],
)
def test_a_mistake_in_a_page_is_an_error(repository: Path, mistake: str) -> None:
    add(repository / "docs" / "errors.md", mistake)
    assert build(repository, repository / "build" / "docs")


def test_a_link_to_a_missing_file_is_an_error(repository: Path) -> None:
    add(repository / "docs" / "errors.md", "[gone](gone.md)")
    with pytest.raises(BrokenPageError, match=r"errors\.md links to .*gone\.md"):
        Pages(repository).write(repository / "build")


def test_make_docs_fails_and_says_why(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(repository / "docs" / "errors.md", "[gone](gone.md)")
    assert main(repository) == 1
    assert "gone.md, which is not a file. Correct the link." in capsys.readouterr().err


def test_an_example_that_is_shown_and_missing_is_an_error(repository: Path) -> None:
    (repository / "example_dags" / "batch.py").unlink()
    with pytest.raises(BrokenPageError, match=r"batch\.md .*batch\.py"):
        Pages(repository).write(repository / "build")


def test_a_page_that_no_list_has_is_found(repository: Path) -> None:
    (repository / "docs" / "new.md").write_text("# New\n")
    (repository / "docs" / "how-to" / "new.md").write_text("# New\n")
    assert Pages(repository).unlisted() == ["how-to/new.md", "new.md"]


def test_links_of_the_repository_become_links_of_the_site(tmp_path: Path) -> None:
    texts = {
        "README.md": "[a](docs/page.md#part) [b](example_dags/one.py) [c](benchmarks/README.md) [d](LICENSE)",
        "CHANGELOG.md": "",
        "CONTRIBUTING.md": "",
        "benchmarks/README.md": "",
        "docs/site.css": "",
        "docs/page.md": "[a](../README.md#a-dag) [b](../example_dags) [c](../.env.example) [d](#part)\n"
        "[e](https://example.com/page.md) ![f](images/one.jpg)\n```console\n[g](gone.md)\n```\n",
        "docs/images/one.jpg": "",
        "docs/how-to/one.md": "[a](../page.md)\n\n[example_dags/one.py](../../example_dags/one.py)\n",
        "example_dags/one.py": "print()\n",
        "LICENSE": "",
        ".env.example": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    pages = Pages(tmp_path)
    assert pages.text_of(tmp_path / "README.md") == (
        "[a](page.md#part) [b](how-to/one.md) [c](benchmarks.md) [d](files/LICENSE.txt)"
    )
    assert pages.text_of(tmp_path / "docs" / "page.md") == (
        "[a](index.md#a-dag) [b](index.md) [c](files/env.example.txt) [d](#part)\n"
        "[e](https://example.com/page.md) ![f](images/one.jpg)\n```bash\n[g](gone.md)\n```\n"
    )
    assert pages.text_of(tmp_path / "docs" / "how-to" / "one.md") == (
        '[a](../page.md)\n\n```python title="example_dags/one.py"\nprint()\n```\n'
    )


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="two.html">', "two.html leads to no file"),
        ('<img src="two.png">', "two.png leads to no file"),
        ('<a href="#nowhere">', "#nowhere leads to no anchor"),
        ('<a href="one.html#nowhere">', "one.html#nowhere leads to no anchor"),
        ('<script src="https://example.com/one.js">', "loads https://example.com/one.js from elsewhere"),
        ('<link rel="preconnect" href="//example.com">', "loads //example.com from elsewhere"),
        ('<link rel="stylesheet" href="http://example.com/a.css">', "loads http://example.com/a.css from elsewhere"),
    ],
)
def test_a_mistake_in_a_built_page_is_found(tmp_path: Path, html: str, problem: str) -> None:
    (tmp_path / "one.html").write_text(html)
    assert problems_of(tmp_path) == [f"one.html: {problem}"]


@pytest.mark.parametrize(
    "style", ["a { src: url('https://example.com/a.woff2'); }", '@import "//example.com/a.css";'], ids=["url", "import"]
)
def test_a_style_that_loads_from_elsewhere_is_found(tmp_path: Path, style: str) -> None:
    (tmp_path / "one.css").write_text(style)
    (problem,) = problems_of(tmp_path)
    assert problem.endswith("from elsewhere")


def test_a_page_may_link_to_other_sites_and_to_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "two.png").touch()
    (tmp_path / "one.html").write_text(
        '<a href="https://example.com"><a href="mailto:a@example.com"><a href="#here"><p id="here">'
        '<a href="one.html#here"><img src="two.png"><img src="data:image/png;base64,">'
    )
    assert problems_of(tmp_path) == []
