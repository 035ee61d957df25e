"""Comparisons as Markdown and SVG: of architectures, of a dial's values, and of the published study with ours."""
