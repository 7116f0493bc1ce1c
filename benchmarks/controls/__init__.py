"""Every attention control under the edits that it is made for, of scenes that show two things."""
