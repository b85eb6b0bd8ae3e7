"""mkdocs hook: notebooks of docs/ are pages of the site, with the outputs that they hold."""

import json
import re

STYLE = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal: bold and colours


def on_files(files, *, config):
    from mkdocs.structure.files import File

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = markdown(json.loads(file.content_string))
        files.append(File.generated(config, file.src_uri.removesuffix("ipynb") + "md", content=page))
    return files


def markdown(notebook: dict) -> str:
    """A notebook of format 4 as a page: text as it is, code and what it printed as blocks, pictures inside the page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        data = [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.get("outputs", ())]
        printed = "".join("".join(each["text/plain"]) for each in data if "image/png" not in each)
        if text := STYLE.sub("", printed).rstrip():
            parts.append(f"```text\n{text}\n```")
        for picture in ("".join(each["image/png"]).replace("\n", "") for each in data if "image/png" in each):
            parts.append(f"![the picture that the code makes](data:image/png;base64,{picture})")
    return "\n\n".join(parts) + "\n"
