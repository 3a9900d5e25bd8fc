"""Builds a report from runs: tables, charts, one HTML page and the queries behind the numbers.

`writer.write_report` does all of it, in this order:

runs            finds the runs and decides which of them are comparable
measurements    computes the metrics of every run; `judge_scores` adds those of a judge
*_tables        make a `table.Table` of each subject; `published` adds the paper's figures
charts          draws accuracy by budget and prefill times as SVG
queries         SQL for DuckDB that computes the same numbers from the answers
page, table_formats   write HTML, CSV, Markdown and LaTeX from the templates
labels          names of methods and benchmarks; texts.yaml has them, and notes of tables
"""
