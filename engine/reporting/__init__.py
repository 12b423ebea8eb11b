"""What a person sees of an evaluation: figures, a gallery, a page, tables; Spanish or English."""
