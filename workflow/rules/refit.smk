# The mixture of the chosen k.
# REQUIRED INPUTS: results/patients/{patient}.npz, results/selection/{patient}.tsv, results/fits/{patient}/k{k}.npz
# OUTPUTS: results/models/{patient}.npz


rule refit:
    input:
        cells=cells_of,
        described=RUN.further_files,
        selection="results/selection/{patient}.tsv",
        fits=expand("results/fits/{{patient}}/k{k}.npz", k=CONFIG.gmm.candidates),
    output:
        model="results/models/{patient}.npz",
    log:
        "results/logs/refit/{patient}.log",
    conda:
        ENVIRONMENT
    threads: requests.fit_threads("refit", CONFIG.gmm, CONFIG.threads)
    resources:
        mem_mb=requests.fit_memory("refit", CONFIG.gmm),
        runtime=requests.fit_minutes("refit", CONFIG.gmm),
    params:
        k=chosen_k,
        candidates=CONFIG.gmm.candidates,
        refit=CONFIG.gmm.refit,
        options=fit_options(CONFIG.gmm),
        seed=CONFIG.seed,
        code=code_of("scripts/refit.py"),
    message:
        "Final mixture of {wildcards.patient}"
    script:
        "../../scripts/refit.py"
