"""The cohort: reading AnnData, splitting it by patient, choosing k, writing the mixtures back."""
