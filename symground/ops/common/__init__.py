"""Code shared by every family of ops: checks, dispatch, registration with torch.library, dtypes and layouts."""
