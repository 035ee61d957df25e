"""What every family of ops uses: checks, dispatch, registration with torch.library, dtypes and layouts."""
