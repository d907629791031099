"""What a workshop needs around the pages: JupyterLab, seats, doctor, demo, a terminal worker."""
