"""How the documentation is built: ``make docs``, strictly (a warning is an error)."""

import importlib.metadata
import json
import re

from pydantic import BaseModel

project = "lipcert"
author = "the lipcert authors"
release = importlib.metadata.version("lipcert")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "lipcert"
html_static_path = ["pictures"]
html_show_sourcelink = False
nitpicky = False
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
maximum_signature_line_length = 100
python_display_short_literal_types = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


# --- what autodoc and napoleon do not do by themselves ----------------------------------------------------------------
def _kind(schema):
    """What a value of a JSON Schema is, in words."""
    if "$ref" in schema:
        return f":class:`.{schema['$ref'].rsplit('/', 1)[-1]}`"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_kind(one) for one in choices if one.get("type") != "null")
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return " or ".join(f"``{json.dumps(value)}``" for value in values)
    if "prefixItems" in schema:
        return " and ".join(_kind(one) for one in schema["prefixItems"])
    if "items" in schema:
        item = _kind(schema["items"])
        return f"list of {item}s" if item.isalpha() else f"list of {item}"
    return {"object": "table"}.get(schema["type"], schema["type"])


def _add_fields(app, what, name, obj, options, lines):
    """The fields of a pydantic model: what each may be, its default, and its description."""
    if not (isinstance(obj, type) and issubclass(obj, BaseModel)):
        return
    schema, found = obj.model_json_schema(), []
    for key, field in schema["properties"].items():
        said = [_kind(field)]
        if field.get("default") is not None and not isinstance(field["default"], dict):
            said.append(f"by default ``{json.dumps(field['default'])}``")
        elif key not in schema.get("required", ()):
            said.append("optional")
        about = f": {field['description']}" if "description" in field else ""
        found.append(f"- ``{key}``, {', '.join(said)}{about}")
    first = lines.index("") if "" in lines else len(lines)
    lines[first:first] = ["", *found, ""]


def _type_attributes(app, what, name, obj, options, lines):
    """The type of an attribute beside its name, without the modules, instead of under its description."""
    start = 0
    for i, line in enumerate(lines):
        if line.startswith(".. attribute::"):
            start = i
        elif line.startswith("   :type: "):
            short = re.sub(r"(?<![\w.'\"])(\w+\.)+\w+", r"~\g<0>", line)
            lines[start + 1 : i + 1] = [short, *lines[start + 1 : i]]


def _shorten(app, what, name, obj, options, arguments, result):
    """No signature of pydantic models, whose fields are listed; no addresses and no factories in other signatures."""
    if isinstance(obj, type) and issubclass(obj, BaseModel):
        return "", None
    return re.sub(r"<factory>|<function [^ ]+>", "...", arguments or "") or arguments, result


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _add_fields)
    app.connect("autodoc-process-docstring", _type_attributes)
    app.connect("autodoc-process-signature", _shorten)
