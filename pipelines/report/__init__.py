"""Builds a report from runs: tables, charts, one HTML page and the queries behind the numbers.

`writer.write_report` does all of it, in this order:

runs           finds the runs and decides which of them are comparable
measurements   computes the metrics of every run, as dictionaries of numbers by name
published      adds the paper's figures as further results
tables         makes a `table.Table` of each subject, as texts.yaml describes it
charts         draws accuracy by budget and prefill times as SVG
queries        SQL for DuckDB that computes the same numbers from the answers
table_formats, templates   write HTML, CSV, Markdown and LaTeX from the templates
"""
