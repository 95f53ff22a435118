def qc_outputs(wildcards):
    return []
