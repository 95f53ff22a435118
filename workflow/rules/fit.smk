# One mixture per patient and k, on the training cells.
# REQUIRED INPUTS: results/patients/{patient}.npz
# OUTPUTS: results/fits/{patient}/k{k}.npz, results/fits/{patient}/k{k}.json


rule fit:
    input:
        cells=cells_of,
        described=RUN.further_files,
    output:
        model="results/fits/{patient}/k{k}.npz",
        score="results/fits/{patient}/k{k}.json",
    log:
        "results/logs/fit/{patient}/k{k}.log",
    conda:
        ENVIRONMENT
    threads: requests.fit_threads("fit", CONFIG.gmm, CONFIG.threads)
    resources:
        mem_mb=requests.fit_memory("fit", CONFIG.gmm),
        runtime=requests.fit_minutes("fit", CONFIG.gmm),
    params:
        options=fit_options(CONFIG.gmm),
        seed=CONFIG.seed,
        default_range=CONFIG.gmm.k_comps is None,
        code=code_of("scripts/fit.py"),
    message:
        "Fitting {wildcards.k} components to {wildcards.patient}"
    script:
        "../../scripts/fit.py"
