#include "test/support/collectives.h"

#include <cstdint>
#include <cstring>
#include <memory>

#include "kernels/device_memory.h"
#include "test/support/device.h"

namespace train_qat::test {

namespace {

// Every rank's array, known to all ranks.
struct Content {
    int64_t rows, columns;
    std::vector<std::vector<float>> of_rank;
};

Content random_content(int ranks, int64_t rows, int64_t columns, uint64_t seed) {
    Content content{rows, columns, {}};
    for (int rank = 0; rank < ranks; ++rank) {
        Random random(seed * 100 + static_cast<uint64_t>(rank));
        std::vector<float> values;
        for (int64_t i = 0; i < rows * columns; ++i) values.push_back(static_cast<float>(random.normal()));
        content.of_rank.push_back(std::move(values));
    }
    return content;
}

class Checker {
  public:
    Checker(Communicator& communicator, Backend& backend) : communicator_(communicator), backend_(backend) {}

    std::vector<std::string> run() {
        const int ranks = communicator_.size();
        const std::vector<std::pair<int64_t, int64_t>> shapes = {
            {ranks * 3, 5}, {ranks * 2 + 1, 7}, {1, 33}, {ranks > 1 ? ranks - 1 : 1, 3}, {0, 4}, {600, 2500}};
        uint64_t seed = 1;
        for (const auto& [rows, columns] : shapes) {
            reduce_scatter({random_content(ranks, rows, columns, seed++)});
            all_gather({random_content(ranks, rows, columns, seed++)});
        }
        reduce_scatter({random_content(ranks, 10, 3, 50), random_content(ranks, 1, 8, 51),
                        random_content(ranks, ranks, 6, 52)});
        all_gather({random_content(ranks, 4, 3, 53), random_content(ranks, 9, 2, 54)});
        all_reduce(random_content(ranks, 7, 11, 60));
        for (int root = 0; root < ranks; ++root) broadcast(random_content(ranks, 3, 1000, 70 + root), root);
        replayed(random_content(ranks, 11, 13, 80));
        gather_on_host();
        in_a_row(random_content(ranks, 20, 9, 90));
        counts_what_it_sends();
        return std::move(wrong_);
    }

  private:
    // This rank's arrays on the device.
    struct Placed {
        Placed(Backend& backend, const std::vector<Content>& contents, int rank) {
            for (const Content& content : contents) {
                const int64_t bytes = std::max<int64_t>(4, content.rows * content.columns * 4);
                memory.emplace_back(backend, bytes);
                backend.copy_to_device(memory.back().data(), content.of_rank[rank].data(),
                                       content.rows * content.columns * 4);
                rows.push_back({memory.back().data(), content.rows, content.columns * 4});
            }
            backend.synchronize();
        }
        std::vector<DeviceMemory> memory;
        std::vector<RankRows> rows;
    };

    std::vector<float> read(const RankRows& array) {
        std::vector<float> values(static_cast<size_t>(array.rows * array.row_bytes / 4));
        backend_.copy_to_host(values.data(), array.data, array.rows * array.row_bytes);
        return values;
    }

    // Elements of rank's rows.
    std::pair<int64_t, int64_t> part(const Content& content, int rank) const {
        return {first_row(content.rows, rank, communicator_.size()) * content.columns,
                first_row(content.rows, rank + 1, communicator_.size()) * content.columns};
    }

    void expect(bool condition, const std::string& what) {
        if (!condition) wrong_.push_back(what);
    }

    static std::string name(const char* operation, const Content& content) {
        return std::string(operation) + " of " + std::to_string(content.rows) + " x " +
               std::to_string(content.columns);
    }

    // Within rounding of the sum in double precision, and the same bits again.
    void expect_sums(const Content& content, const std::vector<float>& values, int64_t begin, int64_t end,
                     const std::string& what) {
        for (int64_t i = begin; i < end; ++i) {
            double sum = 0, size = 0;
            for (const auto& of_rank : content.of_rank) sum += of_rank[i], size += std::abs(of_rank[i]);
            if (!(std::abs(values[i] - sum) <= 1e-6 * size)) return expect(false, what + ": a wrong sum");
        }
    }

    void reduce_scatter(const std::vector<Content>& contents) {
        std::vector<std::vector<float>> first;
        for (int repetition = 0; repetition < 2; ++repetition) {
            Placed placed(backend_, contents, communicator_.rank());
            communicator_.reduce_scatter(placed.rows);
            communicator_.wait();
            for (size_t i = 0; i < contents.size(); ++i) {
                const auto [begin, end] = part(contents[i], communicator_.rank());
                const std::vector<float> values = read(placed.rows[i]);
                const std::vector<float> own(values.begin() + begin, values.begin() + end);
                expect_sums(contents[i], values, begin, end, name("reduce_scatter", contents[i]));
                if (repetition == 0) first.push_back(own);
                expect(own == first[i], name("reduce_scatter", contents[i]) + ": other bits the second time");
            }
        }
    }

    void expect_gathered(const Content& content, const std::vector<float>& values, const std::string& what) {
        for (int rank = 0; rank < communicator_.size(); ++rank) {
            const auto [begin, end] = part(content, rank);
            for (int64_t i = begin; i < end; ++i)
                if (values[i] != content.of_rank[rank][i]) return expect(false, what + ": wrong rows");
        }
    }

    void all_gather(const std::vector<Content>& contents) {
        Placed placed(backend_, contents, communicator_.rank());
        communicator_.all_gather(placed.rows);
        communicator_.wait();
        for (size_t i = 0; i < contents.size(); ++i)
            expect_gathered(contents[i], read(placed.rows[i]), name("all_gather", contents[i]));
    }

    void all_reduce(const Content& content) {
        Placed placed(backend_, {content}, communicator_.rank());
        communicator_.all_reduce(
            Tensor(placed.rows[0].data, DType::float32, {content.rows, content.columns}));
        communicator_.wait();
        expect_sums(content, read(placed.rows[0]), 0, content.rows * content.columns,
                    name("all_reduce", content));
    }

    void broadcast(const Content& content, int root) {
        Placed placed(backend_, {content}, communicator_.rank());
        communicator_.broadcast(placed.rows[0].data, content.rows * content.columns * 4, root);
        communicator_.wait();
        expect(read(placed.rows[0]) == content.of_rank[root], name("broadcast", content));
    }

    // Sums that are replayed, where communicator and backend can: twice the sum of what is there each time.
    void replayed(const Content& content) {
        if (!communicator_.recordable()) return;
        Placed placed(backend_, {content}, communicator_.rank());
        DeviceMemory spare(backend_, content.rows * content.columns * 4);
        for (int round = 0; round < 4; ++round) {
            backend_.copy_to_device(placed.rows[0].data, content.of_rank[communicator_.rank()].data(),
                                    content.rows * content.columns * 4);
            backend_.synchronize();
            backend_.replay({this, communicator_.size(), false, false, true}, [&] {
                communicator_.reduce_scatter(placed.rows);
                backend_.fill_zero(spare.data(), spare.bytes());
                communicator_.all_gather(placed.rows);
                communicator_.wait();
            });
            expect_sums(content, read(placed.rows[0]), 0, content.rows * content.columns,
                        name("replayed sums", content));
        }
    }

    // Many collectives before one wait, the later ones reading what the earlier ones write.
    void in_a_row(const Content& content) {
        Placed placed(backend_, {content}, communicator_.rank());
        const int rounds = 3;
        for (int round = 0; round < rounds; ++round) {
            communicator_.reduce_scatter(placed.rows);
            communicator_.all_gather(placed.rows);
        }
        communicator_.wait();
        Content expected = content;
        const double factor = std::pow(communicator_.size(), rounds - 1);
        for (auto& of_rank : expected.of_rank)
            for (float& value : of_rank) value = static_cast<float>(value * factor);
        expect_sums(expected, read(placed.rows[0]), 0, content.rows * content.columns,
                    name("several in a row", content));
    }

    void gather_on_host() {
        const int rank = communicator_.rank(), size = communicator_.size();
        const std::vector<double> numbers = gather_numbers(communicator_, 10.5 * rank);
        for (int other = 0; other < size; ++other) expect(numbers[other] == 10.5 * other, "gather_numbers");
        const std::vector<std::string> texts =
            gather_texts(communicator_, std::string(static_cast<size_t>(rank * 700), 'x'));
        for (int other = 0; other < size; ++other)
            expect(texts[other].size() == static_cast<size_t>(std::min(other * 700, 1000)), "gather_texts");
        std::vector<char> large(static_cast<size_t>(size) * 300'000, 'z');
        std::memset(&large[static_cast<size_t>(rank) * 300'000], 'a' + rank, 300'000);
        communicator_.gather_on_host(large.data(), 300'000);
        for (int other = 0; other < size; ++other)
            expect(large[static_cast<size_t>(other) * 300'000 + 299'999] == 'a' + other, "gather_on_host");
        communicator_.barrier();
    }

    void counts_what_it_sends() {
        const int rank = communicator_.rank(), size = communicator_.size();
        const Content content = random_content(size, 10, 3, 99);
        Placed placed(backend_, {content}, rank);
        const Traffic before = communicator_.traffic();
        communicator_.reduce_scatter(placed.rows);
        communicator_.all_gather(placed.rows);
        communicator_.wait();
        const auto [begin, end] = part(content, rank);
        expect(communicator_.traffic().reduce_scatter - before.reduce_scatter == (10 * 3 - (end - begin)) * 4,
               "traffic of reduce_scatter");
        expect(communicator_.traffic().all_gather - before.all_gather == (end - begin) * 4 * (size - 1),
               "traffic of all_gather");
    }

    Communicator& communicator_;
    Backend& backend_;
    std::vector<std::string> wrong_;
};

}  // namespace

std::vector<std::string> check_collectives(Communicator& communicator, Backend& backend) {
    return Checker(communicator, backend).run();
}

}  // namespace train_qat::test
