"""What every room uses: types, random draws, files, films, drawing."""
