"""Plotly charts and notebook views of evaluations."""
