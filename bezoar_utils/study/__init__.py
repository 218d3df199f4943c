"""The study's frame: profiles and their schema, the table of stages, the stage contract, files. It knows no other room."""
