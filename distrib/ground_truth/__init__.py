"""What people have: ALTO, PAGE, line pairs, manifests; read into pages, lines and line images."""
