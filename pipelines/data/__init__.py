"""From a manifest in any format to rows with decoded media."""
