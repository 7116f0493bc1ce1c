"""What a picture is edited by: one file per node family."""
