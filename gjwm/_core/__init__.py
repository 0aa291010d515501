"""What every room uses: types, random draws, files, the one loop that fits, films, drawing."""
