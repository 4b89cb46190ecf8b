"""A report of trained models: one HTML file without a request, or Markdown, or CSV.

What stands in it comes from a run's folder: its certificate, what attacks found, its training; nothing is certified
anew. See :func:`collect` and :func:`html`.
"""

from lipcert.report.collect import BoundRow, Entry, collect
from lipcert.report.page import html
from lipcert.report.tables import csv, markdown

__all__ = ["BoundRow", "Entry", "collect", "csv", "html", "markdown"]
