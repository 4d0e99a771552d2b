"""Results files as a page, pictures, a table in the README and CSV: `fastres report`.

`load` reads files of any age into `Case`, `Profile` and `Largest`; `select` picks what belongs
together; `figures` says what a picture shows, `svg` draws it for the page, `png` for documents;
`page` puts the page together. Whatever is shown stands in a file that was given.
"""
