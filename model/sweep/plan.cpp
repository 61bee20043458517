#include "model/sweep/plan.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>

#include "model/plan/schedule.h"
#include "model/storage/checksum.h"
#include "model/units.h"

namespace train_qat {
namespace {

double tokens_of(const SweepPlan& plan, const SweepJob& job) {
    return static_cast<double>(job.end_step - job.first_step) *
           static_cast<double>(plan.runs[job.plan_of].plan.tokens_per_step);
}

// The text whose hash is a job's id.
std::string identity(const SweepRunPlan& run, const SweepJob& job) {
    const Plan& plan = run.plan;
    std::string text = "sweep job, version 1\n" + run.trunk_key + "\n" + std::to_string(plan.parameters) +
                       " parameters\n" + std::to_string(plan.tokens_per_step) + " tokens a step\n" +
                       curve_text(plan, job.end_step) + "\n";
    if (job.run < 0) return text + "full precision";
    return text + "quantized from step " + std::to_string(plan.fp_steps) + " to " + format_bits(plan.bits) +
           " bits, full precision before it";
}

class Planner {
  public:
    explicit Planner(std::vector<SweepRunPlan> runs) { plan_.runs = std::move(runs); }

    SweepPlan plan() {
        std::map<std::string, std::vector<int>> groups;
        std::vector<std::string> order;
        std::set<std::string> names;
        for (size_t i = 0; i < plan_.runs.size(); ++i) {
            const SweepRunPlan& run = plan_.runs[i];
            if (run.name.empty() || !names.insert(run.name).second)
                throw std::logic_error("plan_sweep: runs need names of their own, two are '" + run.name +
                                       "'");
            std::vector<int>& group = groups[run.trunk_key];
            if (group.empty()) order.push_back(run.trunk_key);
            group.push_back(static_cast<int>(i));
        }
        for (const std::string& key : order) branch(groups[key], 0, -1);
        add_up();
        name_jobs();
        return std::move(plan_);
    }

  private:
    // Jobs for runs of one key that share their first `start` steps.
    void branch(std::vector<int> group, int64_t start, int parent) {
        while (!group.empty()) {
            const int first = group.front();
            int64_t end = std::numeric_limits<int64_t>::max();
            std::vector<int> together = {first}, others;
            for (size_t i = 1; i < group.size(); ++i) {
                const int64_t shared = shared_steps(plan_.runs[first].plan, plan_.runs[group[i]].plan);
                if (shared > start) end = std::min(end, shared);
                (shared > start ? together : others).push_back(group[i]);
            }
            if (together.size() == 1)
                add({parent, start, plan_.runs[first].plan.total_steps, first, first, 0, 0, ""});
            else
                branch(together, end, add({parent, start, end, -1, first, 0, 0, ""}));
            group = std::move(others);
        }
    }

    int add(SweepJob job) {
        job.cost = tokens_of(plan_, job) * plan_.runs[job.plan_of].flops_per_token;
        plan_.jobs.push_back(std::move(job));
        return static_cast<int>(plan_.jobs.size()) - 1;
    }

    void add_up() {
        for (const SweepRunPlan& run : plan_.runs) {
            const auto tokens = static_cast<double>(run.plan.tokens());
            plan_.naive.tokens += tokens;
            plan_.naive.flops += tokens * run.flops_per_token;
        }
        for (auto job = plan_.jobs.rbegin(); job != plan_.jobs.rend(); ++job) {
            plan_.shared.tokens += tokens_of(plan_, *job);
            plan_.shared.flops += job->cost;
            job->path_cost += job->cost;  // held that of the most expensive child
            double& above = job->parent < 0 ? plan_.critical_path : plan_.jobs[job->parent].path_cost;
            above = std::max(above, job->path_cost);
        }
    }

    // Runs that differ in name only, as QAT from the start does with either cooldown, are jobs of their own.
    void name_jobs() {
        std::map<std::string, int> seen;
        for (SweepJob& job : plan_.jobs) {
            std::string text = identity(plan_.runs[job.plan_of], job);
            const int repetition = seen[text]++;
            if (repetition > 0) text += "\nrepetition " + std::to_string(repetition);
            job.id = checksum_text(checksum_of(text));
        }
    }

    SweepPlan plan_;
};

struct Row {
    int runs = 0, on_trunks = 0, trunks = 0, segments = 0;
    double alone = 0, shared = 0;  // tokens
};

double saving_percent(double alone, double shared) {
    return alone > 0 ? 100 * (1 - shared / alone) : 0;
}

std::string tokens_text(double tokens) {
    return format_count(static_cast<int64_t>(tokens));
}

std::string table_row(const std::string& name, const Row& row) {
    return formatted("  %-10s %6d %10d %8d %10d %14s %14s %8.1f%%\n", name.c_str(), row.runs, row.on_trunks,
                     row.trunks, row.segments, tokens_text(row.alone).c_str(),
                     tokens_text(row.shared).c_str(), saving_percent(row.alone, row.shared));
}

std::map<int64_t, Row> rows_by_size(const SweepPlan& plan) {
    std::map<int64_t, Row> rows;
    for (const SweepRunPlan& run : plan.runs) {
        Row& row = rows[run.plan.parameters];
        ++row.runs;
        row.alone += static_cast<double>(run.plan.tokens());
    }
    for (const SweepJob& job : plan.jobs) {
        Row& row = rows[plan.runs[job.plan_of].plan.parameters];
        row.shared += tokens_of(plan, job);
        row.segments += job.run < 0;
        row.trunks += job.run < 0 && job.parent < 0;
        row.on_trunks += job.run >= 0 && job.parent >= 0;
    }
    return rows;
}

void check_kind(const SweepPlan& plan, int job, bool leaf, const char* function) {
    if ((plan.jobs.at(job).run >= 0) != leaf)
        throw std::logic_error(std::string(function) + ": job " + std::to_string(job) +
                               " is of the other kind");
}

}  // namespace

SweepPlan plan_sweep(std::vector<SweepRunPlan> runs) {
    return Planner(std::move(runs)).plan();
}

std::vector<int> runs_below(const SweepPlan& plan, int job) {
    std::vector<int> runs;
    std::vector<bool> below(plan.jobs.size(), false);
    below.at(job) = true;
    for (size_t i = job; i < plan.jobs.size(); ++i) {
        const SweepJob& candidate = plan.jobs[i];
        if (candidate.parent >= 0 && below[candidate.parent]) below[i] = true;
        if (below[i] && candidate.run >= 0) runs.push_back(candidate.run);
    }
    return runs;
}

std::string job_name(const SweepPlan& plan, int job) {
    const SweepJob& named = plan.jobs.at(job);
    if (named.run >= 0) return plan.runs[named.run].name;
    return "trunk " + format_count(plan.runs[named.plan_of].plan.parameters) + " to step " +
           std::to_string(named.end_step);
}

std::string trunk_directory(const std::string& output_directory, const SweepPlan& plan, int job) {
    check_kind(plan, job, false, "trunk_directory");
    const SweepJob& trunk = plan.jobs[job];
    return output_directory + "/trunks/" + format_count(plan.runs[trunk.plan_of].plan.parameters) + "_to_" +
           std::to_string(trunk.end_step) + "_" + trunk.id;
}

std::string run_directory(const std::string& output_directory, const SweepPlan& plan, int job) {
    check_kind(plan, job, true, "run_directory");
    const std::string runs = output_directory + "/runs/", ending = "_" + plan.jobs[job].id;
    // A larger grid may call the same run by another name.
    std::error_code none_yet;
    for (const auto& entry : std::filesystem::directory_iterator(runs, none_yet))
        if (entry.path().filename().string().ends_with(ending)) return entry.path().string();
    return runs + job_name(plan, job) + ending;
}

std::string format_sweep_plan(const SweepPlan& plan) {
    std::string text =
        formatted("  %-10s %6s %10s %8s %10s %14s %14s %9s\n", "parameters", "runs", "on trunks", "trunks",
                  "segments", "tokens alone", "tokens shared", "saving");
    Row total;
    for (const auto& [parameters, row] : rows_by_size(plan)) {
        text += table_row(format_count(parameters), row);
        total.runs += row.runs, total.on_trunks += row.on_trunks;
        total.trunks += row.trunks, total.segments += row.segments;
        total.alone += row.alone, total.shared += row.shared;
    }
    const double ranks = plan.critical_path > 0 ? plan.shared.flops / plan.critical_path : 1;
    return formatted("sweep: %d runs; %d shared trunk%s of %d segments\n", total.runs, total.trunks,
                     total.trunks == 1 ? "" : "s", total.segments) +
           text + table_row("total", total) +
           formatted("  %.3e FLOP alone, %.3e shared: %.1f%% less\n", plan.naive.flops, plan.shared.flops,
                     saving_percent(plan.naive.flops, plan.shared.flops)) +
           formatted(
               "  longest chain of jobs %.3e FLOP: no number of ranks is more than %.1f times as fast "
               "as one\n",
               plan.critical_path, ranks);
}

}  // namespace train_qat
