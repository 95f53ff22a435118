from cohortgmm.cohort.diagnostics import read_frame
from cohortgmm.pipeline.job import job_log
from cohortgmm.plots.composition import plot_composition
from cohortgmm.plots.criteria import plot_cohort_criteria
from cohortgmm.plots.overview import plot_overview
from cohortgmm.plots.style import save_figure

with job_log(snakemake):
    tables = {name: read_frame(path, name) for name, path in snakemake.input.items()}
    figure = {
        "criteria": lambda: plot_cohort_criteria(tables["scores"], tables["selection"], metric=snakemake.params.metric),
        "overview": lambda: plot_overview(tables["diagnostics"], tables["weights"]),
        "composition": lambda: plot_composition(tables["composition"]),
    }[snakemake.params.figure]()
    for path in snakemake.output:
        save_figure(figure, path)
